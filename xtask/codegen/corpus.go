package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// writeCorpus writes two objects of every kind, one with every field set and one with none: a line each, its
// JSON, a tab, and its protobuf in base64. All of it follows from the types alone.
func writeCorpus(path string) error {
	scheme, kinds, err := allKinds()
	if err != nil {
		return err
	}
	kinds = append(kinds, kind{corev1.SchemeGroupVersion.WithKind("PodList"), reflect.TypeFor[corev1.PodList]()})
	serializer := protobuf.NewSerializer(scheme, scheme)
	var lines bytes.Buffer
	for _, kind := range kinds {
		full, bare := reflect.New(kind.goType), reflect.New(kind.goType)
		filler := filler{open: map[reflect.Type]int{}}
		filler.fill(full.Elem(), "")
		for _, value := range []reflect.Value{full, bare} {
			object, ok := value.Interface().(runtime.Object)
			if !ok {
				return fmt.Errorf("%s is no object", kind.goType)
			}
			object.GetObjectKind().SetGroupVersionKind(kind.gvk)
			document, err := json.Marshal(object)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.gvk, err)
			}
			// Through JSON, so that both say the same: JSON cannot tell all that Go's types can.
			again := reflect.New(kind.goType).Interface().(runtime.Object)
			if err := json.Unmarshal(document, again); err != nil {
				return fmt.Errorf("%s: %w", kind.gvk, err)
			}
			var encoded bytes.Buffer
			if err := serializer.Encode(again, &encoded); err != nil {
				return fmt.Errorf("%s: %w", kind.gvk, err)
			}
			fmt.Fprintf(&lines, "%s\t%s\n", document, base64.StdEncoding.EncodeToString(encoded.Bytes()))
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
	return os.WriteFile(path, packed.Bytes(), 0o644)
}

// filler sets every field to something that is not its zero value.
type filler struct {
	n    int
	open map[reflect.Type]int
}

// A type that contains itself is filled this many times within itself.
const maxNested = 2

func (f *filler) next() int {
	f.n++
	return f.n
}

func (f *filler) fill(value reflect.Value, name string) {
	if f.leaf(value) {
		return
	}
	switch value.Kind() {
	case reflect.String:
		value.SetString(name)
	case reflect.Bool:
		value.SetBool(true)
	case reflect.Int32, reflect.Int64:
		n := int64(f.next())
		if n%5 == 0 {
			n = -n
		}
		if n%3 == 0 {
			n *= 1000
		}
		value.SetInt(n)
	case reflect.Float64:
		value.SetFloat(float64(f.next()) / 2)
	case reflect.Pointer:
		element := value.Type().Elem()
		if f.open[element] >= maxNested {
			return
		}
		value.Set(reflect.New(element))
		f.fill(value.Elem(), name)
	case reflect.Slice:
		f.slice(value, name)
	case reflect.Map:
		if f.open[value.Type().Elem()] >= maxNested {
			return
		}
		value.Set(reflect.MakeMap(value.Type()))
		for _, key := range []string{"b", "a"} {
			element := reflect.New(value.Type().Elem()).Elem()
			f.fill(element, name+key)
			value.SetMapIndex(reflect.ValueOf(key).Convert(value.Type().Key()), element)
		}
	case reflect.Struct:
		f.structure(value)
	}
}

func (f *filler) slice(value reflect.Value, name string) {
	element := value.Type().Elem()
	if element.Kind() == reflect.Uint8 {
		value.SetBytes([]byte{0, 255, byte(f.next())})
		return
	}
	if f.open[element] >= maxNested {
		return
	}
	n := 2
	if element.Kind() == reflect.Struct {
		n = 1
	}
	value.Set(reflect.MakeSlice(value.Type(), n, n))
	for i := range n {
		f.fill(value.Index(i), fmt.Sprintf("%s%d", name, i))
	}
}

func (f *filler) structure(value reflect.Value) {
	goType := value.Type()
	if goType == reflect.TypeFor[metav1.TypeMeta]() {
		return // Travels in the envelope, and only at the top.
	}
	f.open[goType]++
	for i := range goType.NumField() {
		if goType.Field(i).IsExported() {
			f.fill(value.Field(i), goType.Field(i).Name)
		}
	}
	f.open[goType]--
}

// leaf fills what has a shape of its own.
func (f *filler) leaf(value reflect.Value) bool {
	n := func() int { return f.next() }
	switch at := value.Addr().Interface().(type) {
	case *resource.Quantity:
		*at = resource.MustParse([]string{"100m", "1Gi", "5"}[n()%3])
	case *intstr.IntOrString:
		if n()%2 == 0 {
			*at = intstr.FromInt32(int32(n()))
		} else {
			*at = intstr.FromString("25%")
		}
	case *metav1.Time:
		*at = metav1.Unix(1_700_000_000+int64(n()), 0)
	case *metav1.MicroTime:
		*at = metav1.NewMicroTime(time.Unix(1_700_000_000, int64(n())*1000))
	case *metav1.Duration:
		at.Duration = time.Duration(n()) * 250 * time.Millisecond
	case *runtime.RawExtension:
		at.Raw = []byte(`{"a":1,"b":["x",null]}`)
	case *metav1.FieldsV1:
		at.Raw = []byte(`{"f:spec":{"f:x":{}}}`)
	case *apiextensionsv1.JSON:
		at.Raw = []byte([]string{`"text"`, `{"k":[1,2.5]}`, `true`}[n()%3])
	case *apiextensionsv1.JSONSchemaPropsOrBool:
		at.Allows = true
		if n()%2 == 0 {
			f.fill(reflect.ValueOf(&at.Schema).Elem(), "")
		}
	case *apiextensionsv1.JSONSchemaPropsOrArray:
		if n()%2 == 0 {
			f.fill(reflect.ValueOf(&at.JSONSchemas).Elem(), "")
		} else {
			f.fill(reflect.ValueOf(&at.Schema).Elem(), "")
		}
	case *apiextensionsv1.JSONSchemaPropsOrStringArray:
		if n()%2 == 0 {
			f.fill(reflect.ValueOf(&at.Schema).Elem(), "")
		} else {
			at.Property = []string{"p", "q"}
		}
	default:
		return false
	}
	return true
}
