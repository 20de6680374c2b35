package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"os"
	"reflect"
	"slices"
	"sort"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// leaves have a shape of their own.
var leaves = map[reflect.Type]string{
	reflect.TypeFor[resource.Quantity]():                            "quantity",
	reflect.TypeFor[intstr.IntOrString]():                           "intstr",
	reflect.TypeFor[metav1.Time]():                                  "time",
	reflect.TypeFor[metav1.MicroTime]():                             "microtime",
	reflect.TypeFor[metav1.Duration]():                              "duration",
	reflect.TypeFor[runtime.RawExtension]():                         "any",
	reflect.TypeFor[metav1.FieldsV1]():                              "any",
	reflect.TypeFor[apiextensionsv1.JSON]():                         "any",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrBool]():        "schema-or-bool",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrArray]():       "schema-or-array",
	reflect.TypeFor[apiextensionsv1.JSONSchemaPropsOrStringArray](): "schema-or-strings",
}

// marshaler is what a type of its own in protobuf implements.
type marshaler interface{ Marshal() ([]byte, error) }

type walk struct {
	out     map[string][]string
	seen    map[reflect.Type]bool
	sources sources
	// The fields that a type has to have, by its name.
	required map[string][]string
}

// writeSchema writes what every type looks like. `api/src/schema/parse.rs` says what a line means.
func writeSchema(openapi, reference, out string) error {
	_, kinds, err := allKinds()
	if err != nil {
		return err
	}
	required, err := readRequired(openapi)
	if err != nil {
		return err
	}
	off, err := readOff(reference)
	if err != nil {
		return err
	}
	w := walk{
		out:      map[string][]string{},
		seen:     map[reflect.Type]bool{},
		sources:  sources{packages: map[string]map[string]*ast.StructType{}, off: off},
		required: required,
	}
	for _, kind := range kinds {
		if err := w.message(kind.goType); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(w.out))
	for name := range w.out {
		names = append(names, name)
	}
	sort.Strings(names)
	var text strings.Builder
	text.WriteString("# Written by `cargo xtask codegen`; do not edit. `parse.rs` beside this file says what a line means.\n")
	for _, name := range names {
		fmt.Fprintln(&text, name)
		for _, line := range w.out[name] {
			fmt.Fprintln(&text, line)
		}
	}
	fmt.Fprintf(os.Stderr, "%d types\n", len(names))
	return os.WriteFile(out, []byte(text.String()), 0o644)
}

// readRequired reads which fields of which type an object has to have from the OpenAPI document that upstream's module ships.
func readRequired(path string) (map[string][]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var document struct {
		Definitions map[string]struct {
			Required []string `json:"required"`
		} `json:"definitions"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	required := map[string][]string{}
	for name, definition := range document.Definitions {
		required[name] = definition.Required
	}
	return required, nil
}

// readOff reads which features are off by default from the facts of the reference.
func readOff(path string) (map[string]bool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	off := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) > 3 && words[0] == "gate" && words[3] == "off" {
			off[words[1]] = true
		}
	}
	return off, nil
}

// typeName is the type's name in OpenAPI.
func typeName(t reflect.Type) string {
	path := strings.TrimPrefix(t.PkgPath(), "k8s.io/")
	return "io.k8s." + strings.ReplaceAll(path, "/", ".") + "." + t.Name()
}

func (w *walk) message(t reflect.Type) error {
	if w.seen[t] {
		return nil
	}
	w.seen[t] = true
	var lines []string
	name := typeName(t)
	if err := w.fields(t, "", w.required[name], &lines); err != nil {
		return fmt.Errorf("%s: %w", t, err)
	}
	w.out[name] = lines
	return nil
}

// fields adds the fields of a message, and of those that it inlines, whose numbers come after `prefix`.
func (w *walk) fields(t reflect.Type, prefix string, required []string, lines *[]string) error {
	for i := range t.NumField() {
		field := t.Field(i)
		name := strings.Split(field.Tag.Get("json"), ",")
		has := func(option string) bool {
			for _, o := range name[1:] {
				if o == option {
					return true
				}
			}
			return false
		}
		words := strings.Split(field.Tag.Get("protobuf"), ",")
		if field.Type == reflect.TypeFor[metav1.TypeMeta]() {
			// Without numbers: it travels in the envelope.
			*lines = append(*lines, " kind string", " apiVersion string")
			continue
		}
		if len(words) < 2 {
			continue
		}
		number := prefix + words[1]
		if has("inline") || (field.Anonymous && name[0] == "") {
			if field.Type.Kind() != reflect.Struct {
				return fmt.Errorf("%s is inlined and no struct", field.Name)
			}
			if err := w.fields(field.Type, number+".", required, lines); err != nil {
				return err
			}
			continue
		}
		shape, wrapped, err := w.shape(field.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", field.Name, err)
		}
		line := fmt.Sprintf(" %s %s #%s", name[0], shape, number)
		if slices.Contains(required, name[0]) {
			line += " required"
		}
		line += presence(field.Type, has("omitempty"))
		if wrapped {
			line += " wrapped"
		}
		markers, err := w.sources.markers(t, field.Name)
		if err != nil {
			return err
		}
		for _, marker := range markers {
			line += " " + marker
		}
		*lines = append(*lines, line)
	}
	return nil
}

// presence says whether a field is on the wire even if it is not set, and then whether JSON writes its zero.
func presence(t reflect.Type, omitempty bool) string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return ""
	case reflect.Struct:
		return " go=value"
	}
	if omitempty {
		return " go=omitempty"
	}
	return " go=value"
}

// shape is the notation of the schema file; the second value says that a list is a message of its own.
func (w *walk) shape(t reflect.Type) (string, bool, error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if leaf, ok := leaves[t]; ok {
		return leaf, false, nil
	}
	switch t.Kind() {
	case reflect.String:
		return "string", false, nil
	case reflect.Bool:
		return "bool", false, nil
	case reflect.Int32:
		return "int32", false, nil
	case reflect.Int64:
		return "int64", false, nil
	case reflect.Float64:
		return "double", false, nil
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes", false, nil
		}
		inner, wrapped, err := w.shape(t.Elem())
		if err == nil && wrapped {
			err = fmt.Errorf("a list of %s", t.Elem())
		}
		own := reflect.PointerTo(t).Implements(reflect.TypeFor[marshaler]())
		return "[]" + inner, own, err
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return "", false, fmt.Errorf("a map by %s", t.Key())
		}
		inner, wrapped, err := w.shape(t.Elem())
		return "{}" + inner, wrapped, err
	case reflect.Struct:
		return "." + typeName(t), false, w.message(t)
	}
	return "", false, fmt.Errorf("a %s", t)
}
