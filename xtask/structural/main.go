// Command structural asks upstream's own packages what becomes of objects of custom resources: what decoding prunes, which
// defaults are set, and what validation and rules have against them. `api/tests/structural.rs` compares.
//
//	structural FILE [PER_SCHEMA [SEED]]     gzipped lines of JSON: a schema, and then the cases of it
//
// Schemas stand in `schemas.yaml`, with objects made by hand; others of both are drawn. All of it follows from one seed.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/warning"
	"sigs.k8s.io/yaml"
)

//go:embed schemas.yaml
var schemas string

const (
	defaultPerSchema = 120
	defaultSeed      = 7
	// As often upstream is asked the same: it goes through maps in any order.
	rounds = 40
	// Of schemas that are drawn there are more, with fewer cases.
	drawnSchemas = 250
	casesOfDrawn = 10
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// entry is one document of `schemas.yaml`.
type entry struct {
	Name    string          `json:"name"`
	Schema  json.RawMessage `json:"schema"`
	Objects []pair          `json:"objects"`
}

type pair struct {
	Object json.RawMessage `json:"object"`
	Old    json.RawMessage `json:"old"`
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 3 {
		return errors.New("usage: structural FILE [PER_SCHEMA [SEED]]")
	}
	numbers := []int{defaultPerSchema, defaultSeed}
	for i, text := range args[1:] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	var lines bytes.Buffer
	for at, text := range strings.Split(schemas, "\n---\n") {
		var of entry
		if err := yaml.UnmarshalStrict([]byte(text), &of); err != nil {
			return fmt.Errorf("document %d: %w", at, err)
		}
		random := rand.New(rand.NewPCG(uint64(numbers[1]), uint64(at)))
		if err := record(of, numbers[0], random, &lines); err != nil {
			return fmt.Errorf("%s: %w", of.Name, err)
		}
	}
	for at := range drawnSchemas {
		random := rand.New(rand.NewPCG(uint64(numbers[1]), uint64(at)<<32))
		of := entry{Name: fmt.Sprintf("drawn %d", at), Schema: draw{random}.schema()}
		if err := record(of, numbers[0]/casesOfDrawn, random, &lines); err != nil {
			return fmt.Errorf("%s: %w", of.Name, err)
		}
	}
	var packed bytes.Buffer
	writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(lines.Bytes()); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(args[0], packed.Bytes(), 0o644)
}

// head is the line of a schema.
type head struct {
	Name   string          `json:"name"`
	Schema json.RawMessage `json:"schema"`
	// What the check of the definition has against the schema's rules.
	Rules [][3]string `json:"rules,omitempty"`
	// What it has against other parts of the schema.
	Refused []string `json:"refused,omitempty"`
}

// line is one case.
type line struct {
	Object json.RawMessage `json:"object"`
	Old    json.RawMessage `json:"old,omitempty"`
	// Why the object cannot be decoded. Then nothing else is said.
	Error   string   `json:"error,omitempty"`
	Unknown []string `json:"unknown,omitempty"`
	// Of the object, as it is decoded and with defaults.
	Pruned    any `json:"pruned,omitempty"`
	Defaulted any `json:"defaulted,omitempty"`
	// What is wrong with the new object by itself, as an update of the old one, and as an update of its status.
	Create [][3]string `json:"create,omitempty"`
	Update [][3]string `json:"update,omitempty"`
	Status [][3]string `json:"status,omitempty"`
	// Of the update, and of that of the status.
	Warnings       []string `json:"warnings,omitempty"`
	StatusWarnings []string `json:"status-warnings,omitempty"`
	// Whether upstream has told the faults in the same order whenever it was asked.
	Ordered bool `json:"ordered,omitempty"`
}

// errUnsteady says that upstream tells one of several faults, and not always the same.
var errUnsteady = errors.New("it depends")

const group, version, kind = "example.com", "v1", "Thing"

// world is a custom resource as upstream serves it.
type world struct {
	structural *structuralschema.Structural
	strategy   strategy
	status     strategy
}

type strategy interface {
	Validate(ctx context.Context, obj runtime.Object) field.ErrorList
	ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList
}

func record(of entry, n int, random *rand.Rand, lines *bytes.Buffer) error {
	var external v1.JSONSchemaProps
	if err := json.Unmarshal(of.Schema, &external); err != nil {
		return err
	}
	var internal apiextensions.JSONSchemaProps
	if err := v1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&external, &internal, nil); err != nil {
		return err
	}
	out := head{Name: of.Name, Schema: of.Schema}
	out.Refused, out.Rules = definition(&internal)
	before := lines.Len()
	if err := put(lines, out); err != nil {
		return err
	}
	if out.Refused != nil && strings.HasPrefix(of.Name, "drawn") {
		// What could not be created is not drawn.
		lines.Truncate(before)
		return nil
	}
	// What is stored is served, whatever is thought of it now.
	if out.Refused != nil && !strings.HasPrefix(of.Name, "stored ") {
		return nil
	}
	w, err := newWorld(&internal, strings.HasPrefix(of.Name, "scaled"))
	if err != nil {
		return err
	}
	pairs := slices.Clone(of.Objects)
	for range n {
		object := draw{random}.object(w.structural)
		old := object
		if random.IntN(4) > 0 {
			if changed, ok := (draw{random}).changed(object, w.structural).(map[string]any); ok {
				old = named(changed)
			}
		}
		one, err := json.Marshal(object)
		if err != nil {
			return err
		}
		two, err := json.Marshal(old)
		if err != nil {
			return err
		}
		pairs = append(pairs, pair{Object: one, Old: two})
	}
	for _, pair := range pairs {
		line, err := w.judge(pair)
		if errors.Is(err, errUnsteady) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", pair.Object, err)
		}
		if err := put(lines, line); err != nil {
			return err
		}
	}
	return nil
}

func put(lines *bytes.Buffer, line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	lines.Write(text)
	lines.WriteByte('\n')
	return nil
}

// definition says what the check of a definition with this schema has against it, apart from its rules and against those.
func definition(schema *apiextensions.JSONSchemaProps) (refused []string, rules [][3]string) {
	crd := &apiextensions.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things." + group},
		Spec: apiextensions.CustomResourceDefinitionSpec{
			Group: group, Version: version, Scope: apiextensions.NamespaceScoped,
			Names: apiextensions.CustomResourceDefinitionNames{
				Plural: "things", Singular: "thing", Kind: kind, ListKind: kind + "List",
			},
			PreserveUnknownFields: new(bool),
			Versions: []apiextensions.CustomResourceDefinitionVersion{{
				Name: version, Served: true, Storage: true,
			}},
			// Where the internal type has the schema if all versions share it.
			Validation: &apiextensions.CustomResourceValidation{OpenAPIV3Schema: schema},
			Conversion: &apiextensions.CustomResourceConversion{Strategy: apiextensions.NoneConverter},
		},
		Status: apiextensions.CustomResourceDefinitionStatus{StoredVersions: []string{version}},
	}
	base := "spec.validation.openAPIV3Schema"
	for _, fault := range crdvalidation.ValidateCustomResourceDefinition(context.Background(), crd.DeepCopy()) {
		at, within := strings.CutPrefix(fault.Field, base)
		ofRules := !strings.HasSuffix(fault.Detail, "to be structural")
		if within && ofRules && (strings.Contains(at, "x-kubernetes-validations") || fault.Type == field.ErrorTypeForbidden && at == "") {
			rules = append(rules, [3]string{string(fault.Type), at, steady(fault.ErrorBody())})
		} else {
			refused = append(refused, fault.Error())
		}
	}
	return refused, rules
}

func newWorld(internal *apiextensions.JSONSchemaProps, isScaled bool) (*world, error) {
	var scale *apiextensions.CustomResourceSubresourceScale
	if isScaled {
		selector := ".status.selector"
		scale = &apiextensions.CustomResourceSubresourceScale{
			SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas", LabelSelectorPath: &selector,
		}
	}
	structural, err := structuralschema.NewStructural(internal)
	if err != nil {
		return nil, err
	}
	structural = structural.DeepCopy()
	if err := defaulting.PruneDefaults(structural); err != nil {
		return nil, err
	}
	validator, _, err := schemavalidation.NewSchemaValidator(internal)
	if err != nil {
		return nil, err
	}
	var ofStatus schemavalidation.SchemaValidator
	if status, ok := internal.Properties["status"]; ok {
		if ofStatus, _, err = schemavalidation.NewSchemaValidator(&status); err != nil {
			return nil, err
		}
	}
	gvk := schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
	strategy := customresource.NewStrategy(
		nil, true, gvk, validator, ofStatus, structural, &apiextensions.CustomResourceSubresourceStatus{}, scale, nil)
	return &world{structural: structural, strategy: strategy, status: customresource.NewStatusStrategy(strategy)}, nil
}

func (w *world) judge(of pair) (line, error) {
	out := line{Object: of.Object, Old: of.Old}
	object, unknown, fault, err := w.decode(of.Object)
	if err != nil {
		return line{}, err
	}
	if fault != nil {
		out.Error = fault.Error()
		for range 10 * rounds {
			if _, _, again, _ := w.decode(of.Object); again == nil || again.Error() != out.Error {
				return line{}, errUnsteady
			}
		}
		return out, nil
	}
	out.Unknown = unknown
	out.Pruned = runtime.DeepCopyJSONValue(object)
	defaulting.Default(object, w.structural)
	out.Defaulted = runtime.DeepCopyJSONValue(object)
	var old map[string]any
	if of.Old != nil {
		if old, _, fault, err = w.decode(of.Old); err != nil {
			return line{}, err
		}
		if fault != nil {
			old, out.Old = nil, nil
		} else {
			defaulting.Default(old, w.structural)
		}
	}
	out.Ordered = true
	for round := range rounds {
		again := out
		if err := w.validate(&again, object, old); err != nil {
			return line{}, err
		}
		if round == 0 {
			out = again
			continue
		}
		if !slices.Equal(out.all(false), again.all(false)) {
			out.Ordered = false
		}
		if !slices.Equal(out.all(true), again.all(true)) {
			return line{}, errUnsteady
		}
	}
	if !out.Ordered {
		for _, list := range [][][3]string{out.Create, out.Update, out.Status} {
			slices.SortFunc(list, func(a, b [3]string) int { return slices.Compare(a[:], b[:]) })
		}
		slices.Sort(out.Warnings)
		slices.Sort(out.StatusWarnings)
	}
	return out, nil
}

// all is what is told of the object, in order or sorted.
func (l line) all(isSorted bool) []string {
	var all []string
	for at, list := range [][][3]string{l.Create, l.Update, l.Status} {
		for _, cause := range list {
			all = append(all, fmt.Sprint(at, cause))
		}
	}
	for at, list := range [][]string{l.Warnings, l.StatusWarnings} {
		for _, text := range list {
			all = append(all, fmt.Sprint(at, text))
		}
	}
	if isSorted {
		slices.Sort(all)
	}
	return all
}

func (w *world) validate(out *line, object, old map[string]any) error {
	ctx := context.Background()
	// With what all objects have in common, which the case is not about.
	u := func(object map[string]any) *unstructured.Unstructured {
		out := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(object)}
		out.SetNamespace("default")
		out.SetResourceVersion("1")
		if out.GetName() == "" {
			out.SetName("one")
		}
		return out
	}
	out.Create = causes(w.strategy.Validate(ctx, u(object)))
	if old == nil {
		return nil
	}
	out.Warnings, out.StatusWarnings = nil, nil
	out.Update = causes(w.strategy.ValidateUpdate(warnings(ctx, &out.Warnings), u(object), u(old)))
	mixed := runtime.DeepCopyJSON(old)
	delete(mixed, "status")
	if status, ok := object["status"]; ok {
		mixed["status"] = runtime.DeepCopyJSONValue(status)
	}
	out.Status = causes(w.status.ValidateUpdate(warnings(ctx, &out.StatusWarnings), u(mixed), u(old)))
	return nil
}

type recorder struct{ to *[]string }

func (r recorder) AddWarning(_, text string) { *r.to = append(*r.to, text) }

func warnings(ctx context.Context, to *[]string) context.Context {
	return warning.WithWarningRecorder(ctx, recorder{to})
}

func causes(list field.ErrorList) [][3]string {
	var out [][3]string
	for _, fault := range list {
		out = append(out, [3]string{string(fault.Type), fault.Field, steady(fault.ErrorBody())})
	}
	return out
}

var selfType = regexp.MustCompile(`selfType\d+`)

// steady is the text without the name that upstream takes from the clock.
func steady(text string) string { return selfType.ReplaceAllString(text, "selfType") }

// decode does what the handler of custom resources does after it has parsed a body: `unstructuredSchemaCoercer.apply`.
func (w *world) decode(text []byte) (object map[string]any, unknown []string, fault, err error) {
	if err := utiljson.Unmarshal(text, &object); err != nil {
		return nil, nil, nil, err
	}
	found, isKind, fault := unstructured.NestedString(object, "kind")
	if fault != nil {
		return nil, nil, fault, nil
	}
	apiVersion, isVersion, fault := unstructured.NestedString(object, "apiVersion")
	if fault != nil {
		return nil, nil, fault, nil
	}
	options := objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true}
	meta, isMeta, unknown, fault := objectmeta.GetObjectMetaWithOptions(object, options)
	if fault != nil {
		return nil, nil, fault, nil
	}
	track := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	unknown = append(unknown, pruning.PruneWithOptions(object, w.structural, true, track)...)
	defaulting.PruneNonNullableNullsWithoutDefaults(object, w.structural)
	coerced, paths := objectmeta.CoerceWithOptions(
		nil, object, w.structural, false, objectmeta.CoerceOptions{ReturnUnknownFieldPaths: true})
	if coerced != nil {
		return nil, nil, coerced, nil
	}
	unknown = append(unknown, paths...)
	u := &unstructured.Unstructured{Object: object}
	if isKind {
		u.SetKind(found)
	}
	if isVersion {
		u.SetAPIVersion(apiVersion)
	}
	if isMeta {
		if err := objectmeta.SetObjectMeta(u.Object, meta); err != nil {
			return nil, nil, nil, err
		}
	}
	return u.Object, unknown, nil, nil
}
