package main

import (
	"context"
	"errors"
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/tools/cache"
)

// interfaces knows gadgets: whatever a gadget is, it is converted by saying so.
type interfaces struct {
	mapper runtime.EquivalentResourceRegistry
}

func newInterfaces() *interfaces {
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

func (i *interfaces) Default(object runtime.Object) {}

func (i *interfaces) Convert(in, out, _ any) error {
	from, to := in.(*unstructured.Unstructured), out.(*unstructured.Unstructured)
	kind := to.GroupVersionKind()
	if from.GetLabels()["stays"] != "" {
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

// mayGet allows to get, to everybody.
func mayGet(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetVerb() == "get" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// scopes of the kinds that params are of. Any other is not served.
var scopes = map[schema.GroupVersionKind]meta.RESTScope{
	{Group: "rules.example.com", Version: "v1", Kind: "Limit"}: meta.RESTScopeNamespace,
	{Group: "rules.example.com", Version: "v1", Kind: "Rule"}:  meta.RESTScopeRoot,
}

// params are objects of one kind, by namespace and name.
type params struct {
	cache.SharedIndexInformer
	kind      schema.GroupVersionKind
	namespace *string
	all       []*unstructured.Unstructured
}

func paramsOf(kind schema.GroupVersionKind, all []*unstructured.Unstructured) *params {
	out := &params{kind: kind}
	for _, object := range all {
		if object.GroupVersionKind() == kind {
			out.all = append(out.all, object)
		}
	}
	sort.SliceStable(out.all, func(i, j int) bool {
		a, b := out.all[i], out.all[j]
		if a.GetNamespace() != b.GetNamespace() {
			return a.GetNamespace() < b.GetNamespace()
		}
		return a.GetName() < b.GetName()
	})
	return out
}

func (p *params) HasSynced() bool                     { return true }
func (p *params) Informer() cache.SharedIndexInformer { return p }
func (p *params) Lister() cache.GenericLister         { return p }

func (p *params) ByNamespace(namespace string) cache.GenericNamespaceLister {
	return &params{kind: p.kind, namespace: &namespace, all: p.all}
}

func (p *params) List(selector labels.Selector) ([]runtime.Object, error) {
	var out []runtime.Object
	for _, object := range p.all {
		if p.namespace != nil && object.GetNamespace() != *p.namespace {
			continue
		}
		if selector.Matches(labels.Set(object.GetLabels())) {
			out = append(out, object)
		}
	}
	return out, nil
}

func (p *params) Get(name string) (runtime.Object, error) {
	found, _ := p.List(labels.Everything())
	for _, object := range found {
		if object.(*unstructured.Unstructured).GetName() == name {
			return object, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: p.kind.Group, Resource: "params"}, name)
}

// namespaces as listers have them.
func namespaces(all []*corev1.Namespace) (cache.Indexer, error) {
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, namespace := range all {
		if err := indexer.Add(namespace); err != nil {
			return nil, fmt.Errorf("namespace %s: %w", namespace.Name, err)
		}
	}
	return indexer, nil
}
