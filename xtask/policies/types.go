package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"

	v1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// checked is one policy, held against the types of what it matches.
type checked struct {
	Name   string          `json:"name"`
	Policy json.RawMessage `json:"policy"`

	Warnings []v1.ExpressionWarning `json:"warnings"`
}

// typedSchema is what gadgets and limits are here.
const typedSchema = `{"type": "object", "properties": {
	"apiVersion": {"type": "string"}, "kind": {"type": "string"},
	"metadata": {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}},
	"max": {"type": "integer", "format": "int64"},
	"spec": {"type": "object", "properties": {
		"n": {"type": "integer", "format": "int64"}, "name": {"type": "string"}, "flag": {"type": "boolean"}, "real": {"type": "number"},
		"when": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "duration"},
		"bytes": {"type": "string", "format": "byte"}, "port": {"x-kubernetes-int-or-string": true}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
		"any": {"x-kubernetes-preserve-unknown-fields": true}, "a-b": {"type": "string"}, "if": {"type": "string"},
		"list": {"type": "array", "items": {"type": "integer"}}, "map": {"type": "object", "additionalProperties": {"type": "string"}},
		"parts": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
		"byName": {"type": "object", "additionalProperties": {"type": "object", "properties": {"y": {"type": "integer"}}}},
		"inner": {"type": "object", "properties": {"z": {"type": "object", "properties": {"w": {"type": "string"}}}}}}}}}`

type schemas struct{}

func (schemas) ResolveSchema(kind schema.GroupVersionKind) (*spec.Schema, error) {
	if kind.Kind != "Gadget" && kind.Kind != "Limit" {
		return nil, fmt.Errorf("%v: %w", kind, resolver.ErrSchemaNotFound)
	}
	out := &spec.Schema{}
	return out, json.Unmarshal([]byte(typedSchema), out)
}

var counted = regexp.MustCompile(`\b(Gadget|Limit)[0-9]+`)

func check(c *checked) error {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, version := range []string{"v1", "v2"} {
		mapper.AddSpecific(schema.GroupVersionKind{Group: "example.com", Version: version, Kind: "Gadget"},
			schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "gadgets"},
			schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "gadget"}, meta.RESTScopeNamespace)
	}
	mapper.AddSpecific(schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Untyped"},
		schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "untypeds"},
		schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "untyped"}, meta.RESTScopeNamespace)
	policy := &v1.ValidatingAdmissionPolicy{}
	if err := json.Unmarshal(c.Policy, policy); err != nil {
		return err
	}
	checker := &validating.TypeChecker{SchemaResolver: schemas{}, RestMapper: mapper}
	c.Warnings = checker.Check(policy)
	for i := range c.Warnings {
		c.Warnings[i].Warning = counted.ReplaceAllString(c.Warnings[i].Warning, "$1#")
	}
	return nil
}

func types() []checked {
	var cases []checked
	for i, expression := range []string{
		"object.spec.n > 1", "object.spec.none", "object.none.x", "object.spec.n > 'a'", "object.spec.name + 1 == 2", "object.spec.real > 1.0", "object.spec.when > timestamp('2024-01-01T00:00:00Z')",
		"object.spec.day == object.spec.when", "object.spec.time > duration('1s')", "object.spec.bytes == b'x'", "object.spec.bytes == 'x'", "object.spec.port == 1", "object.spec.port.x",
		"object.spec.free.x == 1", "object.spec.any == 1", "object.spec.a__dash__b == 'x'", "object.spec.__if__ == 'x'", "object.spec.`a-b` == 'x'", "object.spec.list.all(x, x > 1)", "object.spec.list.all(x, x > 'a')",
		"object.spec.map['a'] == 'x'", "object.spec.map.a == 1", "object.spec.parts.all(p, p.x == 'a')", "object.spec.parts.all(p, p.y == 'a')", "object.spec.parts[0] == 1", "object.spec.byName['a'].y == 1",
		"object.spec.byName.a.z == 1", "object.spec.inner.z.w == 1", "object.spec.inner.z == 1", "object.spec == 1", "object == 1", "oldObject.spec.none == 1", "params.max > 1", "params.none > 1", "params == 1",
		"request.name == 1", "request.none", "namespaceObject.metadata.name == 1", "authorizer.group('').resource('a').check('get').allowed()", "authorizer.requestResource.check('get').allowed()", "variables.n > 1",
		"variables.n > 'a'", "variables.bad == 1", "variables.none == 1", "variables.spec.none == 1", "variables.list.all(x, x == 'a')", "1", "nothing", "object.spec.", "object.metadata.name == 1", "object.metadata.labels == 1",
		"object.spec.n == oldObject.spec.name && object.spec.none == 1", "has(object.spec.none)", "has(object.spec.n)", "object.?spec.?none == optional.none()", "object.spec.flag", "size(object.spec.name) > object.spec.real",
	} {
		for j, spec := range []m{nil, limit, {"paramKind": m{"apiVersion": "x/v1", "kind": "None"}}} {
			declared := variables("n", "object.spec.n", "bad", "object.none", "spec", "object.spec", "list", "object.spec.list")
			checks := m{"validations": l{m{"expression": expression}, m{"expression": "true", "messageExpression": expression}}}
			cases = append(cases, checked{Name: fmt.Sprintf("%d %d %s", i, j, expression), Policy: policy("p", spec, declared, checks)})
		}
	}
	for i, rules := range []l{{rule("v1", "v2")}, {rule("*")}, {rule("v2"), rule("v1")}, {rule("v3")}, {rule("v1", "v3")}, {}, {with(rule("v1"), m{"resources": l{"gadgets/status"}})},
		{with(rule("v1"), m{"resources": l{"*", "gadgets"}})}, {with(rule("v1"), m{"resources": l{"untypeds", "gadgets"}})}, {with(rule("v1"), m{"apiGroups": l{"*"}}), rule("v2")}, {with(rule("v1"), m{"apiGroups": l{}})}} {
		cases = append(cases, checked{Name: fmt.Sprintf("rules %d", i), Policy: policy("p", checks("object.spec.none == 1", "true", "object.spec.name == 1"),
			m{"matchConstraints": resources(m{"resourceRules": rules})})})
	}
	random := rand.New(rand.NewPCG(36, 11))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	fields := []string{"n", "name", "flag", "real", "when", "port", "list", "map", "parts", "byName", "inner", "inner.z", "none", "free", "a__dash__b"}
	term := func() string {
		return pick("object.spec.", "object.spec.", "oldObject.spec.", "variables.s.", "params.spec.") + pick(fields...)
	}
	for i := range 300 {
		expression := term() + pick(" == ", " != ", " < ", " + ", " in ") + pick(term(), "1", "'a'", "true", "1.5", "[1]")
		cases = append(cases, checked{Name: fmt.Sprintf("seed %d %s", i, expression), Policy: policy("p", limit, variables("s", "object.spec"), checks(expression))})
	}
	return cases
}
