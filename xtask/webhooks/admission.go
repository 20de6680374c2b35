package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

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

// admitted is one request, through the webhooks of one kind.
type admitted struct {
	Name           string            `json:"name"`
	Mutating       bool              `json:"mutating"`
	Configurations []json.RawMessage `json:"configurations"`
	Namespaces     []json.RawMessage `json:"namespaces"`
	Attributes     attributes        `json:"attributes"`
	Replies        map[string]reply  `json:"replies"`
	// What others change of the object before the second round, if there is one.
	Between json.RawMessage `json:"between,omitempty"`

	Calls       []call            `json:"calls"`
	Object      json.RawMessage   `json:"object"`
	Error       *metav1.Status    `json:"error,omitempty"`
	Reinvoked   bool              `json:"reinvoked,omitempty"`
	Annotations map[string]string `json:"annotations"`
	Warnings    []string          `json:"warnings"`
}

// world of objects: whatever it is, it is converted by saying so.
type interfaces struct {
	mapper runtime.EquivalentResourceRegistry
}

func newInterfaces() *interfaces {
	// Whatever has the same key is the same resource.
	mapper := runtime.NewEquivalentResourceRegistryWithIdentity(func(r schema.GroupResource) string {
		if r.Resource == "gadgets" {
			return "gadgets"
		}
		return r.String()
	})
	for _, version := range []string{"v1", "v2"} {
		gv := schema.GroupVersion{Group: "example.com", Version: version}
		mapper.RegisterKindFor(gv.WithResource("gadgets"), "", gv.WithKind("Gadget"))
		mapper.RegisterKindFor(gv.WithResource("gadgets"), "status", gv.WithKind("Gadget"))
	}
	old := schema.GroupVersion{Group: "old.example.com", Version: "v1"}
	mapper.RegisterKindFor(old.WithResource("gadgets"), "", old.WithKind("OldGadget"))
	return &interfaces{mapper: mapper}
}

func (i *interfaces) GetObjectCreater() runtime.ObjectCreater     { return i }
func (i *interfaces) GetObjectTyper() runtime.ObjectTyper         { return i }
func (i *interfaces) GetObjectDefaulter() runtime.ObjectDefaulter { return i }
func (i *interfaces) GetObjectConvertor() runtime.ObjectConvertor { return i }
func (i *interfaces) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper {
	return i.mapper
}

func (i *interfaces) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	out := &unstructured.Unstructured{Object: map[string]any{}}
	out.SetGroupVersionKind(kind)
	return out, nil
}

func (i *interfaces) ObjectKinds(object runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{object.GetObjectKind().GroupVersionKind()}, false, nil
}

func (i *interfaces) Recognizes(schema.GroupVersionKind) bool { return true }

func (i *interfaces) Default(object runtime.Object) {
	out := object.(*unstructured.Unstructured).Object
	if spec, ok := out["spec"].(map[string]any); ok && spec["defaulted"] == nil {
		spec["defaulted"] = true
	}
}

func (i *interfaces) Convert(in, out, _ any) error {
	from, to := in.(*unstructured.Unstructured), out.(*unstructured.Unstructured)
	kind := to.GroupVersionKind()
	if kind.Kind == "Unconvertible" {
		return errors.New("that cannot be converted")
	}
	to.Object = from.DeepCopy().Object
	to.SetGroupVersionKind(kind)
	return nil
}

func (i *interfaces) ConvertToVersion(runtime.Object, runtime.GroupVersioner) (runtime.Object, error) {
	return nil, errors.New("not asked for")
}

func (i *interfaces) ConvertFieldLabel(schema.GroupVersionKind, string, string) (string, string, error) {
	return "", "", errors.New("not asked for")
}

// recording keeps the annotations that are given.
type recording struct {
	admission.Attributes
	lock        sync.Mutex
	annotations map[string]string
}

func (r *recording) AddAnnotation(key, value string) error {
	return r.AddAnnotationWithLevel(key, value, auditinternal.LevelMetadata)
}

func (r *recording) AddAnnotationWithLevel(key, value string, level auditinternal.Level) error {
	r.lock.Lock()
	defer r.lock.Unlock()
	if err := r.Attributes.AddAnnotationWithLevel(key, value, level); err != nil {
		return err
	}
	r.annotations[key] = value
	return nil
}

// warnings as they come.
type warnings struct {
	lock sync.Mutex
	all  []string
}

func (w *warnings) AddWarning(_, text string) {
	w.lock.Lock()
	defer w.lock.Unlock()
	w.all = append(w.all, text)
}

// mayGet allows to get, to everybody.
func mayGet(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetVerb() == "get" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

type plugin interface {
	admission.Interface
	SetExternalKubeInformerFactory(informers.SharedInformerFactory)
	ValidateInitialization() error
}

func admissions(w *world) ([]admitted, error) {
	cases := admissionCases()
	for i := range cases {
		if err := admit(w, &cases[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", cases[i].Name, err)
		}
	}
	return cases, nil
}

func object(raw json.RawMessage) (runtime.Object, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	out := &unstructured.Unstructured{}
	// Numbers that are whole stay so.
	return out, utiljson.Unmarshal(raw, &out.Object)
}

func admit(w *world, c *admitted) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stored []runtime.Object
	for i, raw := range c.Configurations {
		var configuration runtime.Object = &v1.ValidatingWebhookConfiguration{}
		if c.Mutating {
			configuration = &v1.MutatingWebhookConfiguration{}
		}
		if err := json.Unmarshal(raw, configuration); err != nil {
			return fmt.Errorf("configuration %d: %w", i, err)
		}
		switch configuration := configuration.(type) {
		case *v1.ValidatingWebhookConfiguration:
			for i := range configuration.Webhooks {
				trust(w, &configuration.Webhooks[i].ClientConfig)
			}
		case *v1.MutatingWebhookConfiguration:
			for i := range configuration.Webhooks {
				trust(w, &configuration.Webhooks[i].ClientConfig)
			}
		}
		stored = append(stored, configuration)
	}
	for _, raw := range c.Namespaces {
		namespace := &corev1.Namespace{}
		if err := json.Unmarshal(raw, namespace); err != nil {
			return err
		}
		stored = append(stored, namespace)
	}
	client := fake.NewClientset(stored...)
	factory := informers.NewSharedInformerFactory(client, 0)
	var chain plugin
	if c.Mutating {
		hooks, err := mutating.NewMutatingWebhook(nil)
		if err != nil {
			return err
		}
		hooks.SetServiceResolver(w)
		hooks.SetExternalKubeClientSet(client)
		hooks.SetUnconditionalAuthorizer(authorizer.AuthorizerFunc(mayGet))
		chain = hooks
	} else {
		hooks, err := validating.NewValidatingAdmissionWebhook(nil)
		if err != nil {
			return err
		}
		hooks.SetServiceResolver(w)
		hooks.SetExternalKubeClientSet(client)
		hooks.SetUnconditionalAuthorizer(authorizer.AuthorizerFunc(mayGet))
		chain = hooks
	}
	chain.SetExternalKubeInformerFactory(factory)
	if err := chain.ValidateInitialization(); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return c.run(ctx, w, chain)
}

func trust(w *world, config *v1.WebhookClientConfig) {
	if len(config.CABundle) == 0 {
		config.CABundle = w.ca
	}
}

func (c *admitted) run(ctx context.Context, w *world, chain plugin) error {
	a := c.Attributes
	now, err := object(a.Object)
	if err != nil {
		return err
	}
	old, err := object(a.OldObject)
	if err != nil {
		return err
	}
	options, err := object(a.Options)
	if err != nil {
		return err
	}
	attributes := &recording{annotations: map[string]string{}, Attributes: admission.NewAttributesRecord(now, old,
		schema.GroupVersionKind(a.Kind), a.Namespace, a.Name, schema.GroupVersionResource(a.Resource), a.Subresource,
		admission.Operation(a.Operation), options, a.DryRun, &a.User)}
	warned := &warnings{all: []string{}}
	ctx = warning.WithWarningRecorder(ctx, warned)
	w.answering(c.Replies)
	told := newInterfaces()
	if c.Mutating {
		mutator := chain.(admission.MutationInterface)
		err = mutator.Admit(ctx, attributes, told)
		if again := attributes.GetReinvocationContext(); err == nil && again.ShouldReinvoke() {
			c.Reinvoked = true
			again.SetIsReinvoke()
			if len(c.Between) > 0 {
				if err := utiljson.Unmarshal(c.Between, &now.(*unstructured.Unstructured).Object); err != nil {
					return err
				}
			}
			err = mutator.Admit(ctx, attributes, told)
		}
	} else {
		err = chain.(admission.ValidationInterface).Validate(ctx, attributes, told)
	}
	c.Calls, c.Annotations, c.Warnings = w.asked(!c.Mutating), attributes.annotations, warned.all
	if err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return fmt.Errorf("an error without a status: %w", err)
		}
		told := status.Status()
		text, err := json.Marshal(told)
		if err != nil {
			return err
		}
		c.Error = &metav1.Status{}
		if err := json.Unmarshal([]byte(w.anonymous(string(text))), c.Error); err != nil {
			return err
		}
	}
	if now == nil {
		c.Object = json.RawMessage("null")
		return nil
	}
	c.Object, err = json.Marshal(now.(*unstructured.Unstructured).Object)
	return err
}

// rule is one rule held against one request.
type rule struct {
	Rule        v1.RuleWithOperations       `json:"rule"`
	Operation   string                      `json:"operation"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	Subresource string                      `json:"subresource"`
	Namespace   string                      `json:"namespace"`
	Matches     bool                        `json:"matches"`
}

func rulesTable() []rule {
	random := rand.New(rand.NewPCG(36, 3))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	some := func(from ...string) []string {
		out := []string{}
		for range 1 + random.IntN(3) {
			out = append(out, pick(from...))
		}
		return out
	}
	var table []rule
	for range 6000 {
		line := rule{
			Operation: pick("CREATE", "UPDATE", "DELETE", "CONNECT"),
			Resource: metav1.GroupVersionResource{Group: pick("", "apps", "example.com"), Version: pick("v1", "v2"),
				Resource: pick("pods", "namespaces", "gadgets")},
			Subresource: pick("", "", "", "status", "scale", "x/y"),
			Namespace:   pick("", "a"),
		}
		line.Rule.APIGroups = some("", "apps", "example.com", "*", "*")
		line.Rule.APIVersions = some("v1", "v2", "*", "*")
		line.Rule.Resources = some("pods", "namespaces", "gadgets", "*", "*/*", "pods/*", "gadgets/status", "*/scale", "*/status", "pods/x/y", "gadgets/")
		for _, operation := range some("CREATE", "UPDATE", "DELETE", "CONNECT", "*", "*") {
			line.Rule.Operations = append(line.Rule.Operations, v1.OperationType(operation))
		}
		if scope := v1.ScopeType(pick("", "*", "*", "Cluster", "Namespaced")); scope != "" {
			line.Rule.Scope = &scope
		}
		matcher := rules.Matcher{Rule: line.Rule, Attr: admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, line.Namespace,
			"name", schema.GroupVersionResource(line.Resource), line.Subresource, admission.Operation(line.Operation), nil, false, nil)}
		line.Matches = matcher.Matches()
		table = append(table, line)
	}
	return table
}
