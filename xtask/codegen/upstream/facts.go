package main

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
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
	out  map[string][]string
	seen map[reflect.Type]bool
}

func writeFacts(to io.Writer) error {
	_, kinds, err := allKinds()
	if err != nil {
		return err
	}
	w := walk{out: map[string][]string{}, seen: map[reflect.Type]bool{}}
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
	out := bufio.NewWriter(to)
	for _, name := range names {
		fmt.Fprintln(out, name)
		for _, line := range w.out[name] {
			fmt.Fprintln(out, line)
		}
	}
	return out.Flush()
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
	if err := w.fields(t, "", &lines); err != nil {
		return fmt.Errorf("%s: %w", t, err)
	}
	w.out[typeName(t)] = lines
	return nil
}

// fields adds the fields of a message, and of those that it inlines, whose numbers come after `prefix`.
func (w *walk) fields(t reflect.Type, prefix string, lines *[]string) error {
	for i := range t.NumField() {
		field := t.Field(i)
		json := strings.Split(field.Tag.Get("json"), ",")
		has := func(option string) bool {
			for _, o := range json[1:] {
				if o == option {
					return true
				}
			}
			return false
		}
		words := strings.Split(field.Tag.Get("protobuf"), ",")
		if len(words) < 2 {
			continue // TypeMeta, which travels in the envelope.
		}
		number := prefix + words[1]
		if has("inline") || (field.Anonymous && json[0] == "") {
			if field.Type.Kind() != reflect.Struct {
				return fmt.Errorf("%s is inlined and no struct", field.Name)
			}
			if err := w.fields(field.Type, number+".", lines); err != nil {
				return err
			}
			continue
		}
		shape, wrapped, err := w.shape(field.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", field.Name, err)
		}
		line := fmt.Sprintf(" %s %s #%s", json[0], shape, number)
		line += presence(field.Type, has("omitempty"))
		if wrapped {
			line += " wrapped"
		}
		for _, tag := range [][2]string{{"listType", "list"}, {"listMapKey", "keys"}, {"patchStrategy", "patch"}, {"patchMergeKey", "merge-key"}} {
			if value := field.Tag.Get(tag[0]); value != "" {
				line += " " + tag[1] + "=" + value
			}
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
