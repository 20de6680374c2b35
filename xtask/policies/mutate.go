package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	_ "unsafe" // for go:linkname

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission/plugin/policy/matching"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

//go:linkname compileMutating k8s.io/apiserver/pkg/admission/plugin/policy/mutating.compilePolicy
func compileMutating(policy *v1.MutatingAdmissionPolicy) mutating.PolicyEvaluator

// mutated is one request, mutated by policies.
type mutated struct {
	Name       string            `json:"name"`
	Policies   []json.RawMessage `json:"policies"`
	Bindings   []json.RawMessage `json:"bindings"`
	Namespaces []json.RawMessage `json:"namespaces"`
	Params     []json.RawMessage `json:"params"`
	Attributes attributes        `json:"attributes"`
	// What others make of the object before the second round, if there is one.
	Between json.RawMessage `json:"between,omitempty"`

	Error     *metav1.Status  `json:"error,omitempty"`
	Object    json.RawMessage `json:"object"`
	Reinvoked bool            `json:"reinvoked,omitempty"`
}

// converters knows the type of gadgets.
type converters struct{ converter managedfields.TypeConverter }

func (c *converters) Run(context.Context) {}

func (c *converters) GetTypeConverter(kind schema.GroupVersionKind) managedfields.TypeConverter {
	if kind.Kind == "OldGadget" {
		return nil
	}
	return c.converter
}

// gadgetSchema is what the gadgets of the test on the other side are, too.
const gadgetSchema = `{"type": "object", "properties": {
	"apiVersion": {"type": "string"}, "kind": {"type": "string"},
	"metadata": {"type": "object", "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "generateName": {"type": "string"},
		"labels": {"type": "object", "additionalProperties": {"type": "string"}}, "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}},
	"spec": {"type": "object", "properties": {
		"n": {"type": "integer", "format": "int64"}, "name": {"type": "string"}, "flag": {"type": "boolean"},
		"list": {"type": "array", "items": {"type": "integer", "format": "int64"}},
		"set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
		"ports": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer", "format": "int64"},
			"tags": {"type": "array", "items": {"type": "string"}}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
		"map": {"type": "object", "additionalProperties": {"type": "string"}},
		"whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
		"inner": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "integer", "format": "int64"}}}}}}}`

func newConverters() (*converters, error) {
	schemas := map[string]*spec.Schema{}
	for _, gvk := range [][2]string{{"example.com/v1", "Gadget"}, {"example.com/v2", "Gadget"}} {
		one := &spec.Schema{}
		if err := json.Unmarshal([]byte(gadgetSchema), one); err != nil {
			return nil, err
		}
		kind := schema.FromAPIVersionAndKind(gvk[0], gvk[1])
		one.Extensions = spec.Extensions{"x-kubernetes-group-version-kind": []any{
			map[string]any{"group": kind.Group, "version": kind.Version, "kind": kind.Kind}}}
		schemas["com.example."+kind.Version+".Gadget"] = one
	}
	converter, err := managedfields.NewTypeConverter(schemas, false)
	return &converters{converter}, err
}

func (c *mutated) hooks() ([]mutating.PolicyHook, error) {
	policies, err := read[v1.MutatingAdmissionPolicy](c.Policies)
	if err != nil {
		return nil, err
	}
	bindings, err := read[v1.MutatingAdmissionPolicyBinding](c.Bindings)
	if err != nil {
		return nil, err
	}
	var all []*unstructured.Unstructured
	for _, raw := range c.Params {
		param, err := object(raw)
		if err != nil {
			return nil, err
		}
		all = append(all, param.(*unstructured.Unstructured))
	}
	sort.Slice(policies, func(i, j int) bool { return policies[i].Name < policies[j].Name })
	sort.SliceStable(bindings, func(i, j int) bool { return bindings[i].Name < bindings[j].Name })
	var hooks []mutating.PolicyHook
	for _, policy := range policies {
		hook := mutating.PolicyHook{Policy: policy}
		for _, binding := range bindings {
			if binding.Spec.PolicyName == policy.Name {
				hook.Bindings = append(hook.Bindings, binding)
			}
		}
		if len(hook.Bindings) == 0 {
			continue
		}
		if kind := policy.Spec.ParamKind; kind != nil {
			gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
			scope, ok := scopes[gvk]
			if ok {
				hook.ParamInformer, hook.ParamScope = paramsOf(gvk, all), scope
			} else {
				hook.ConfigurationError = fmt.Errorf("failed to find resource referenced by paramKind: '%v'", gvk)
			}
		}
		hook.Evaluator = compileMutating(policy)
		hooks = append(hooks, hook)
	}
	return hooks, nil
}

func (c *mutated) mutate(types *converters) error {
	hooks, err := c.hooks()
	if err != nil {
		return err
	}
	known, err := read[corev1.Namespace](c.Namespaces)
	if err != nil {
		return err
	}
	indexer, err := namespaces(known)
	if err != nil {
		return err
	}
	matcher := matching.NewMatcher(corelisters.NewNamespaceLister(indexer), fake.NewClientset())
	dispatcher := mutating.NewDispatcher(authorizer.AuthorizerFunc(mayGet), matcher, types)
	record, err := c.Attributes.record()
	if err != nil {
		return err
	}
	err = dispatcher.Dispatch(context.Background(), record, newInterfaces(), hooks)
	if again := record.GetReinvocationContext(); err == nil && again.ShouldReinvoke() {
		c.Reinvoked = true
		again.SetIsReinvoke()
		if len(c.Between) > 0 {
			if err := utiljson.Unmarshal(c.Between, &record.GetObject().(*unstructured.Unstructured).Object); err != nil {
				return err
			}
		}
		err = dispatcher.Dispatch(context.Background(), record, newInterfaces(), hooks)
	}
	if err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return fmt.Errorf("an error without a status: %w", err)
		}
		told := status.Status()
		c.Error = &told
	}
	c.Object = json.RawMessage("null")
	if now := record.GetObject(); now != nil {
		c.Object, err = json.Marshal(now.(*unstructured.Unstructured).Object)
		return err
	}
	return nil
}

func jsonPatch(expressions ...string) m {
	all := l{}
	for _, expression := range expressions {
		all = append(all, m{"patchType": "JSONPatch", "jsonPatch": m{"expression": expression}})
	}
	return m{"mutations": all}
}

func apply(expressions ...string) m {
	all := l{}
	for _, expression := range expressions {
		all = append(all, m{"patchType": "ApplyConfiguration", "applyConfiguration": m{"expression": expression}})
	}
	return m{"mutations": all}
}

func mutations() []mutated {
	var cases []mutated
	from := func(c judged) mutated {
		return mutated{Name: c.Name, Policies: c.Policies, Bindings: c.Bindings, Namespaces: c.Namespaces, Params: c.Params, Attributes: c.Attributes}
	}
	rich := func(c *judged) {
		c.Attributes.Object = raw(gadget(m{"spec": m{"n": 3, "name": "abc", "list": l{1, 2}, "set": l{"a", "b"}, "map": m{"a": "b"}, "whole": m{"a": "1"},
			"ports": l{m{"name": "x", "port": 1}, m{"name": "y", "port": 2, "tags": l{"t"}}}, "inner": m{"x": "1"}}}))
	}
	never := m{"reinvocationPolicy": "Never"}
	add := func(name string, spec m, bound m, change ...func(*judged)) {
		cases = append(cases, from(one(name, with(never, spec), bound, append([]func(*judged){rich}, change...)...)))
	}
	for i, expression := range []string{
		"[]", "[JSONPatch{op: 'add', path: '/spec/n', value: 7}]", "[JSONPatch{op: 'add', path: '/spec/flag', value: true}, JSONPatch{op: 'remove', path: '/spec/name'}]",
		"[JSONPatch{op: 'replace', path: '/spec/n', value: object.spec.n + 1}]", "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a.b/c~d'), value: 'x'}]",
		"[JSONPatch{op: 'test', path: '/spec/n', value: 3}, JSONPatch{op: 'replace', path: '/spec/n', value: 4}]",
		"[JSONPatch{op: 'test', path: '/spec/n', value: 9}, JSONPatch{op: 'replace', path: '/spec/n', value: 4}]", "[JSONPatch{op: 'copy', from: '/spec/name', path: '/spec/map/c'}]",
		"[JSONPatch{op: 'move', from: '/spec/name', path: '/spec/map/c'}]", "[JSONPatch{op: 'add', path: '/spec/inner', value: Object.spec.inner{x: 'q', y: 4}}]",
		"[JSONPatch{op: 'add', path: '/spec/inner', value: Object.spec{x: 'q'}}]", "[JSONPatch{op: 'add', path: '/spec/map', value: {'k': 'v'}}]",
		"[JSONPatch{op: 'add', path: '/spec/inner', value: Object.spec.inner{z: Object.spec.other{}}}]", "[JSONPatch{op: 'add', path: '/spec/list/-', value: 5}]",
		"[JSONPatch{op: 'add', path: '/spec/list', value: [1, 2, 3].map(x, x * 2)}]", "[JSONPatch{op: 'add', path: '/spec/x', value: null}]", "[JSONPatch{op: 'add', path: '/spec/x', value: 1.5}]",
		"[JSONPatch{op: 'add', path: '/spec/x', value: 9007199254740993}]", "[JSONPatch{op: 'add', path: '/spec/x', value: 2.0}]", "[JSONPatch{op: 'add', path: '/spec/x', value: object.spec}]",
		"object.spec.n > 2 ? [JSONPatch{op: 'remove', path: '/spec/n'}] : []", "[JSONPatch{op: 'add', path: '/spec/n', nothing: 1}]", "[JSONPatch{op: 1}]", "[1]", "JSONPatch{op: 'add'}", "object.none",
		"[JSONPatch{op: 'add', path: '/spec/n', value: object.none}]", "[JSONPatch{", "[Object{}]", "object.spec.list", "[JSONPatch{op: 'add', path: '/spec/who', value: request.userInfo.username}]",
		"[JSONPatch{op: 'add', path: '/spec/ns', value: namespaceObject.metadata.labels['env']}]", "[JSONPatch{op: 'add', path: '/spec/v', value: variables.v}]",
		"authorizer.requestResource.check('get').allowed() ? [JSONPatch{op: 'remove', path: '/spec/n'}] : []", "[JSONPatch{op: 'add', path: '/spec/x', ?value: object.?none}]",
	} {
		for _, failure := range []string{"Fail", "Ignore"} {
			add(fmt.Sprintf("a patch %d %s: %s", i, failure, expression), with(variables("v", "object.spec.n * 2"), jsonPatch(expression), m{"failurePolicy": failure}), nil)
		}
	}
	for i, expression := range []string{
		"Object{}", "Object{spec: Object.spec{n: 7}}", "Object{spec: Object.spec{name: 'x', flag: true}}", "Object{metadata: Object.metadata{labels: {'a': 'b'}}}",
		"Object{metadata: Object.metadata{labels: Object.metadata.labels{a: 'b'}}}", "Object{spec: Object.spec{map: {'c': object.spec.name}}}", "Object{spec: Object.spec{set: ['c', 'a']}}",
		"Object{spec: Object.spec{list: [1]}}", "Object{spec: Object.spec{whole: Object.spec.whole{b: 'x'}}}", "Object{spec: Object.spec{ports: [Object.spec.ports{name: 'y', port: 9}]}}",
		"Object{spec: Object.spec{ports: [Object.spec.ports{name: 'z', port: 9}]}}", "Object{spec: Object.spec{ports: [Object.spec.ports{port: 9}]}}",
		"Object{spec: Object.spec{ports: [Object.spec.ports{name: 'x', tags: ['q']}]}}", "Object{spec: Object.spec{ports: object.spec.ports.map(p, Object.spec.ports{name: p.name, port: p.port + 1})}}",
		"Object{spec: Object.spec{inner: Object.spec.inner{y: 4}}}", "Object{spec: Object.spec{inner: Object.spec{y: 4}}}", "Object{spec: Object.status{y: 4}}", "Object.spec{n: 1}", "Object{spec: Object.spec{none: 1}}",
		"Object{spec: Object.spec{n: 'x'}}", "Object{spec: Object.spec{n: 1.5}}", "Object{none: 1}", "1", "object", "Object{spec: Object.spec{n: object.none}}", "Object{spec: Object.spec{?n: object.?none}}",
		"Object{spec: Object.spec{?n: optional.of(5)}}", "has(object.spec.n) ? Object{spec: Object.spec{n: 8}} : Object{}", "Object{spec: Object.spec{n: variables.v}}", "Object{spec: {'n': 5}}",
		"Object{spec: Object.spec{inner: null}}", "Object{apiVersion: 'x'}",
	} {
		for _, failure := range []string{"Fail", "Ignore"} {
			add(fmt.Sprintf("a part %d %s: %s", i, failure, expression), with(variables("v", "object.spec.n * 2"), apply(expression), m{"failurePolicy": failure}), nil)
		}
	}
	count := "[JSONPatch{op: 'add', path: '/spec/n', value: object.spec.n + 1}]"
	for _, failure := range []string{"Fail", "Ignore"} {
		f := m{"failurePolicy": failure}
		add("two mutations, "+failure, with(jsonPatch(count, count), f), nil)
		add("one of them fails, "+failure, with(jsonPatch("[JSONPatch{op: 'add', path: '/a/b', value: 1}]", count, "[JSONPatch{op: 'odd', path: '/a'}]"), f), nil)
		for i, spec := range []m{conditions("object.spec.n == 3"), conditions("false"), conditions("object.none"), conditions("object.none == 1", "1"),
			{"matchConstraints": nil}, {"matchConstraints": resources(m{"resourceRules": l{rule("v2")}})}, {"paramKind": m{"apiVersion": "no.example.com/v1", "kind": "None"}},
			{"matchConstraints": resources(m{"resourceRules": l{with(rule("v1"), m{"apiGroups": l{"old.example.com"}})}})}, limit} {
			for j, bound := range []m{nil, ref(m{"name": "none", "parameterNotFoundAction": "Deny"}), ref(m{"selector": m{}}), {"matchResources": resources(m{"resourceRules": l{rule("v3")}, "matchPolicy": "Exact"})}} {
				add(fmt.Sprintf("a policy %d %d %s", i, j, failure), with(jsonPatch(count), f, spec), bound)
			}
		}
	}
	for _, failure := range []string{"Fail", "Ignore"} {
		add("it cannot be converted, "+failure, with(jsonPatch(count), m{"failurePolicy": failure, "matchConstraints": resources(m{"resourceRules": l{rule("v2")}})}), nil,
			func(c *judged) {
				c.Attributes.Object = raw(gadget(m{"metadata": m{"name": "g", "labels": m{"stays": "y"}}}))
			})
	}
	add("params", with(limit, jsonPatch("[JSONPatch{op: 'add', path: '/spec/n', value: object.spec.n + params.max}]")), ref(m{"selector": m{}}))
	add("no namespace", jsonPatch(count), nil, func(c *judged) { c.Namespaces = nil })
	add("a deletion", jsonPatch(count), nil, func(c *judged) {
		c.Attributes.Operation, c.Attributes.OldObject, c.Attributes.Object = "DELETE", c.Attributes.Object, nil
	})
	for i, again := range [][2]string{{"Never", "Never"}, {"IfNeeded", "Never"}, {"Never", "IfNeeded"}, {"IfNeeded", "IfNeeded"}} {
		for j, between := range []json.RawMessage{nil, raw(gadget(m{"spec": m{"n": 50}}))} {
			for k, second := range []string{count, "[JSONPatch{op: 'add', path: '/spec/name', value: 'z'}]", "[]"} {
				c := from(base(fmt.Sprintf("a second round %d %d %d", i, j, k)))
				c.Policies = []json.RawMessage{policy("a", jsonPatch(count), m{"reinvocationPolicy": again[0]}), policy("b", jsonPatch(second), m{"reinvocationPolicy": again[1]})}
				c.Bindings = []json.RawMessage{binding("a", "a"), binding("b", "b")}
				c.Between = between
				cases = append(cases, c)
			}
		}
	}
	return cases
}
