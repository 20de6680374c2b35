package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"time"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"
)

//go:embed owned.yaml
var ownedDefinition []byte

const (
	defaultHistories = 150
	apiVersion       = "owned.example.com/v1"
)

var thing = schema.GroupVersionKind{Group: "owned.example.com", Version: "v1", Kind: "Thing"}

// A kind of one version, whose objects are documents.
type documents struct{ schema *structural.Structural }

func (documents) Convert(in, out, _ any) error {
	out.(*unstructured.Unstructured).Object = in.(*unstructured.Unstructured).DeepCopy().Object
	return nil
}

func (documents) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

func (documents) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (d documents) Default(object runtime.Object) {
	defaulting.Default(object.(*unstructured.Unstructured).UnstructuredContent(), d.schema)
}

func (documents) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind)
	return object, nil
}

// Histories of several managers over an object, as those of `xtask/histories` are.
func owned(n int, seed uint64) ([]byte, error) {
	var definition any
	if err := yaml.Unmarshal(ownedDefinition, &definition); err != nil {
		return nil, err
	}
	internal, err := decode(definition)
	if err != nil {
		return nil, err
	}
	crd := &v1.CustomResourceDefinition{}
	if err := scheme.Convert(internal, crd, nil); err != nil {
		return nil, err
	}
	spec, err := builder.BuildOpenAPIV3(crd, "v1", builder.Options{})
	if err != nil {
		return nil, err
	}
	types, err := managedfields.NewTypeConverter(spec.Components.Schemas, false)
	if err != nil {
		return nil, err
	}
	schema, err := structural.NewStructural(internal.Spec.Validation.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	kind := documents{schema}
	manager := func(subresource string, reset []string) (*managedfields.FieldManager, error) {
		fields := fieldpath.NewSet()
		for _, name := range reset {
			fields.Insert(fieldpath.MakePathOrDie(name))
		}
		filters := fieldpath.NewExcludeFilterSetMap(map[fieldpath.APIVersion]*fieldpath.Set{apiVersion: fields})
		return managedfields.NewDefaultCRDFieldManager(types, kind, kind, kind, thing, thing.GroupVersion(), subresource, filters)
	}
	managers := map[string]*managedfields.FieldManager{}
	for subresource, reset := range map[string][]string{"": {"status"}, "status": {"metadata", "spec"}} {
		if managers[subresource], err = manager(subresource, reset); err != nil {
			return nil, err
		}
	}
	var lines bytes.Buffer
	if err := line(&lines, map[string]any{"definition": definition}); err != nil {
		return nil, err
	}
	document, err := json.Marshal(definition)
	if err != nil {
		return nil, err
	}
	root := lookup(mustParse(document), "/spec/versions/0/schema/openAPIV3Schema").(map[string]any)
	for i := range n {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		if err := ownedHistory(&lines, random, root, kind, managers); err != nil {
			return nil, fmt.Errorf("history %d: %w", i, err)
		}
	}
	return lines.Bytes(), nil
}

func mustParse(text []byte) any {
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}

func ownedHistory(lines *bytes.Buffer, random *rand.Rand, root map[string]any, kind documents, managers map[string]*managedfields.FieldManager) error {
	var live *unstructured.Unstructured
	for n := range 4 + random.IntN(7) {
		step := map[string]any{"kind": "Thing", "manager": fmt.Sprintf("m%d", 1+random.IntN(3))}
		if n == 0 {
			step["first"] = true
		}
		now := time.Unix(1_700_000_000+int64(60*n), 0).UTC()
		step["now"] = now.Format(time.RFC3339)
		w := &writer{random: random, spoils: random.IntN(6) == 0}
		subresource := ""
		var base runtime.Object
		if live == nil {
			base, _ = kind.New(thing)
		} else {
			base = live.DeepCopy()
		}
		var result runtime.Object
		var err error
		if live != nil && random.IntN(3) == 0 || live == nil && random.IntN(3) == 0 {
			w.spoils = false
			object := w.document(root)
			if live != nil {
				changed := live.DeepCopy().Object
				if random.IntN(4) == 0 {
					subresource = "status"
					changed["status"] = object["status"]
				} else {
					w.lay(changed, object)
				}
				object = changed
			}
			step["operation"], step["document"] = "update", copied(object)
			typed := &unstructured.Unstructured{Object: copied(object).(map[string]any)}
			pruning.Prune(typed.Object, kind.schema, true)
			if fault := objectmeta.Coerce(nil, typed.Object, kind.schema, true, false); fault != nil {
				return fault
			}
			defaulting.PruneNonNullableNullsWithoutDefaults(typed.Object, kind.schema)
			kind.Default(typed)
			result = managers[subresource].UpdateNoErrors(base, typed, step["manager"].(string))
		} else {
			document := w.document(root)
			if random.IntN(6) == 0 {
				subresource = "status"
			}
			force := random.IntN(3) == 0
			step["operation"], step["document"] = "apply", copied(document)
			if force {
				step["force"] = true
			}
			typed := &unstructured.Unstructured{Object: copied(document).(map[string]any)}
			result, err = managers[subresource].Apply(base, typed, step["manager"].(string), force)
		}
		if subresource != "" {
			step["subresource"] = subresource
		}
		if err != nil {
			step["error"] = told(err)
		} else {
			live = result.(*unstructured.Unstructured)
			entries := live.GetManagedFields()
			for i := range entries {
				if entries[i].Time != nil && entries[i].Time.Year() > 2024 {
					entries[i].Time = &metav1.Time{Time: now}
				}
			}
			live.SetManagedFields(entries)
			live.SetUID("11111111-1111-4111-8111-111111111111")
			live = &unstructured.Unstructured{Object: copied(live.Object).(map[string]any)}
			step["object"] = live.Object
		}
		if err := line(lines, step); err != nil {
			return err
		}
	}
	return nil
}

// As an object is read from JSON.
func copied(value any) any {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(text); err != nil {
		panic(err)
	}
	return object.Object
}

func told(err error) map[string]any {
	out := map[string]any{"code": 500, "reason": "", "message": err.Error(), "causes": [][3]string{}}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return out
	}
	said := status.Status()
	out["code"], out["reason"], out["message"] = said.Code, said.Reason, said.Message
	causes := [][3]string{}
	for _, cause := range said.Details.Causes {
		causes = append(causes, [3]string{string(cause.Type), cause.Field, cause.Message})
	}
	sort.Slice(causes, func(i, j int) bool { return slices.Compare(causes[i][:], causes[j][:]) < 0 })
	out["causes"] = causes
	return out
}

// Writes documents of a schema.
type writer struct {
	random *rand.Rand
	// Whether something in the document is still to be wrong: one thing, as upstream tells several in any order.
	spoils bool
	// Whether unknown fields are kept by something around.
	open bool
}

func (w *writer) spoil(of int) bool {
	spoils := w.spoils && w.chance(of)
	if spoils {
		w.spoils = false
	}
	return spoils
}

func (w *writer) chance(of int) bool { return w.random.IntN(of) == 0 }

func (w *writer) document(root map[string]any) map[string]any {
	document := w.object(root).(map[string]any)
	metadata := w.metadata()
	metadata["name"], metadata["namespace"] = "t", "n"
	document["apiVersion"], document["kind"], document["metadata"] = apiVersion, "Thing", metadata
	return document
}

func (w *writer) word() string { return pick(w.random, []string{"a", "b", "c"}) }

func (w *writer) words() map[string]any {
	out := map[string]any{}
	for range 1 + w.random.IntN(2) {
		out[w.word()] = w.word()
	}
	return out
}

func (w *writer) metadata() map[string]any {
	out := map[string]any{}
	if w.chance(2) {
		out["labels"] = w.words()
	}
	if w.chance(3) {
		out["annotations"] = w.words()
	}
	if w.chance(4) {
		out["finalizers"] = []any{"example.com/" + w.word()}
	}
	if w.chance(4) {
		out["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "P", "name": "p", "uid": w.word()}}
	}
	return out
}

func (w *writer) anything(depth int) any {
	switch w.random.IntN(5) {
	case 0:
		return w.word()
	case 1:
		return w.random.IntN(3)
	case 2:
		if depth > 0 {
			return []any{w.anything(depth - 1), w.word()}
		}
	case 3:
		if depth > 0 {
			return map[string]any{w.word(): w.anything(depth - 1)}
		}
	}
	return w.chance(2)
}

func (w *writer) value(schema map[string]any) any {
	if w.spoil(25) {
		return w.anything(1)
	}
	if schema["x-kubernetes-int-or-string"] == true {
		return pick(w.random, []any{1, 2, "5%"})
	}
	if enum, ok := schema["enum"].([]any); ok {
		return pick(w.random, enum)
	}
	switch schema["type"] {
	case "string":
		if schema["format"] == "date-time" {
			return pick(w.random, []any{"2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"})
		}
		return w.word()
	case "integer":
		return w.random.IntN(3)
	case "number":
		return pick(w.random, []any{1.5, 2, 0.25})
	case "boolean":
		return w.chance(2)
	case "array":
		return w.list(schema)
	case "object":
		return w.object(schema)
	}
	return w.anything(2)
}

func (w *writer) list(schema map[string]any) any {
	list := []any{}
	seen := map[string]bool{}
	keys, _ := schema["x-kubernetes-list-map-keys"].([]any)
	for range w.random.IntN(4) {
		item := w.value(schema["items"].(map[string]any))
		key := fmt.Sprint(item)
		if object, ok := item.(map[string]any); ok && len(keys) > 0 {
			key = ""
			for _, name := range keys {
				value, ok := object[name.(string)]
				if !ok && name == "protocol" {
					value = "TCP"
				}
				key += fmt.Sprint(value, ",")
			}
		}
		if schema["x-kubernetes-list-type"] != nil && seen[key] && !w.spoil(3) {
			continue
		}
		seen[key] = true
		list = append(list, item)
	}
	return list
}

func (w *writer) object(schema map[string]any) any {
	out := map[string]any{}
	isOpen := schema["x-kubernetes-preserve-unknown-fields"] == true
	wasOpen := w.open
	w.open = wasOpen || isOpen
	defer func() { w.open = wasOpen }()
	properties, _ := schema["properties"].(map[string]any)
	required, _ := schema["required"].([]any)
	for _, name := range sorted(properties) {
		if slices.Contains(required, any(name)) || w.chance(2) {
			out[name] = w.value(properties[name].(map[string]any))
		}
	}
	switch values := schema["additionalProperties"].(type) {
	case map[string]any:
		for range w.random.IntN(3) {
			out[w.word()] = w.value(values)
		}
	case bool:
		// Objects in it lose their fields when they are read, which is not looked at here.
		out[w.word()] = w.word()
	}
	if schema["x-kubernetes-embedded-resource"] == true {
		out["apiVersion"], out["kind"], out["metadata"] = "v1", "K", w.metadata()
	}
	if isOpen || wasOpen && w.chance(3) || w.spoil(6) {
		out["x"+w.word()] = w.anything(2)
	}
	return out
}

// lay changes some of an object to what a document has.
func (w *writer) lay(object, document map[string]any) {
	for _, name := range sorted(document) {
		value := document[name]
		if name == "apiVersion" || name == "kind" || name == "status" {
			continue
		}
		below, isMap := object[name].(map[string]any)
		from, isAlso := value.(map[string]any)
		if isMap && isAlso && !w.chance(4) {
			w.lay(below, from)
		} else if w.chance(2) && name != "name" && name != "namespace" && name != "metadata" {
			object[name] = value
		}
	}
}
