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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"k8s.io/apiserver/pkg/admission/plugin/policy/matching"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
)

//go:linkname compileValidating k8s.io/apiserver/pkg/admission/plugin/policy/validating.compilePolicy
func compileValidating(policy *v1.ValidatingAdmissionPolicy) validating.Validator

// attributes is a request as admission sees it.
type attributes struct {
	Operation   string                      `json:"operation"`
	Kind        metav1.GroupVersionKind     `json:"kind"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	Subresource string                      `json:"subresource"`
	Namespace   string                      `json:"namespace"`
	Name        string                      `json:"name"`
	User        user.DefaultInfo            `json:"user"`
	DryRun      bool                        `json:"dryRun"`
	Object      json.RawMessage             `json:"object"`
	OldObject   json.RawMessage             `json:"oldObject"`
	Options     json.RawMessage             `json:"options"`
}

// judged is one request, judged by policies.
type judged struct {
	Name       string            `json:"name"`
	Policies   []json.RawMessage `json:"policies"`
	Bindings   []json.RawMessage `json:"bindings"`
	Namespaces []json.RawMessage `json:"namespaces"`
	Params     []json.RawMessage `json:"params"`
	Attributes attributes        `json:"attributes"`

	Error       *metav1.Status    `json:"error,omitempty"`
	Annotations map[string]string `json:"annotations"`
	Warnings    []string          `json:"warnings"`
}

// recording keeps the annotations that are taken.
type recording struct {
	admission.Attributes
	annotations map[string]string
}

func (r *recording) AddAnnotation(key, value string) error {
	return r.AddAnnotationWithLevel(key, value, auditinternal.LevelMetadata)
}

func (r *recording) AddAnnotationWithLevel(key, value string, level auditinternal.Level) error {
	if err := r.Attributes.AddAnnotationWithLevel(key, value, level); err != nil {
		return err
	}
	r.annotations[key] = value
	return nil
}

// warnings as they come.
type warnings struct{ all []string }

func (w *warnings) AddWarning(_, text string) { w.all = append(w.all, text) }

func object(raw json.RawMessage) (runtime.Object, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	out := &unstructured.Unstructured{}
	// Numbers that are whole stay so.
	return out, utiljson.Unmarshal(raw, &out.Object)
}

func (a attributes) record() (*recording, error) {
	now, err := object(a.Object)
	if err != nil {
		return nil, err
	}
	old, err := object(a.OldObject)
	if err != nil {
		return nil, err
	}
	options, err := object(a.Options)
	if err != nil {
		return nil, err
	}
	return &recording{annotations: map[string]string{}, Attributes: admission.NewAttributesRecord(now, old,
		schema.GroupVersionKind(a.Kind), a.Namespace, a.Name, schema.GroupVersionResource(a.Resource), a.Subresource,
		admission.Operation(a.Operation), options, a.DryRun, &a.User)}, nil
}

func read[T any](all []json.RawMessage) ([]*T, error) {
	var out []*T
	for _, raw := range all {
		one := new(T)
		if err := json.Unmarshal(raw, one); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func (c *judged) hooks() ([]validating.PolicyHook, error) {
	policies, err := read[v1.ValidatingAdmissionPolicy](c.Policies)
	if err != nil {
		return nil, err
	}
	bindings, err := read[v1.ValidatingAdmissionPolicyBinding](c.Bindings)
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
	var hooks []validating.PolicyHook
	for _, policy := range policies {
		hook := validating.PolicyHook{Policy: policy}
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
		hook.Evaluator = compileValidating(policy)
		hooks = append(hooks, hook)
	}
	return hooks, nil
}

func (c *judged) judge() error {
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
	dispatcher := validating.NewDispatcher(authorizer.AuthorizerFunc(mayGet), generic.NewPolicyMatcher(matcher))
	record, err := c.Attributes.record()
	if err != nil {
		return err
	}
	warned := &warnings{all: []string{}}
	ctx := warning.WithWarningRecorder(context.Background(), warned)
	err = dispatcher.Dispatch(ctx, record, newInterfaces(), hooks)
	c.Annotations, c.Warnings = record.annotations, warned.all
	if err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return fmt.Errorf("an error without a status: %w", err)
		}
		told := status.Status()
		c.Error = &told
	}
	return nil
}
