package main

import (
	"math/rand/v2"
	"slices"
	"sort"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/runtime"
)

// draw makes objects of a schema, most of them nearly right.
type draw struct{ *rand.Rand }

func (d draw) object(s *structuralschema.Structural) map[string]any {
	object, ok := d.value(s, 0).(map[string]any)
	if !ok {
		object = map[string]any{}
	}
	return named(object)
}

func named(object map[string]any) map[string]any {
	object["apiVersion"], object["kind"] = group+"/"+version, kind
	object["metadata"] = map[string]any{"name": "one", "namespace": "default"}
	return object
}

var names = []string{"a", "b", "c", "d-e", "unknown", "kind", "metadata", "x.y", ""}

var texts = []string{
	"", "a", "b", "ab", "abc", "ä€😀", "Abc-1", "1", "10", "true", "null", "a b", "<&>\u2028", "\x00\x7f\u00a0", "say \"x\"\n",
	"2020-02-29", "2021-02-29", "2020-01-01T00:00:00Z", "2020-01-01t23:59:59.5+01:00", "2020-01-01T24:00:00Z", "1h30m", "3 days", "1d",
	"YWJj", "YWJ", "10.0.0.1", "010.0.0.1", "::1", "fe80::1%eth0", "10.0.0.0/8", "10.0.0.1/33", "00:11:22:33:44:55",
	"a@b.example", "Ann <a@b.example>", "http://a.example/b?c#d", "/a", "a.example", "-a.example", "a_b",
	"123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-42d3-a456-426614174000", "#fff", "#ggg", "rgb(1, 2,3)", "rgb(256,1,1)",
	"978-3-16-148410-0", "0-306-40615-2", "4111 1111 1111 1111", "078-05-1120", "507f1f77bcf86cd799439011", "UPPER", "a.b.c",
	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
}

var whole = []int64{0, 1, 2, 3, 5, 7, 10, -1, -5, 100, 1 << 31, 1 << 53, 1<<63 - 1, -1 << 63}
var broken = []float64{0.5, 1.5, 2.0, -0.25, 1e21, 1e-7, 123456789.5, 3.4e39, 1e300, 10}

func pick[T any](d draw, of []T) T { return of[d.IntN(len(of))] }

// value is one of a schema, or now and then of none.
func (d draw) value(s *structuralschema.Structural, depth int) any {
	if depth > 6 {
		return nil
	}
	switch {
	case s == nil || d.IntN(25) == 0:
		return d.any(depth)
	case d.IntN(25) == 0:
		return nil
	case s.Default.Object != nil && d.IntN(4) == 0:
		return runtime.DeepCopyJSONValue(s.Default.Object)
	}
	if v := s.ValueValidation; v != nil && len(v.Enum) > 0 && d.IntN(3) > 0 {
		return runtime.DeepCopyJSONValue(pick(d, v.Enum).Object)
	}
	switch s.Type {
	case "object":
		return d.fields(s, depth)
	case "array":
		out := []any{}
		for range d.IntN(4) {
			item := d.value(s.Items, depth+1)
			if len(out) > 0 && d.IntN(8) == 0 {
				item = runtime.DeepCopyJSONValue(out[0])
			}
			out = append(out, item)
		}
		return out
	case "string":
		return pick(d, texts)
	case "integer":
		return pick(d, whole)
	case "number":
		if d.IntN(2) == 0 {
			return pick(d, whole)
		}
		return pick(d, broken)
	case "boolean":
		return d.IntN(2) == 0
	}
	if s.XIntOrString && d.IntN(8) > 0 {
		if d.IntN(2) == 0 {
			return pick(d, whole)
		}
		return pick(d, texts)
	}
	return d.any(depth)
}

func (d draw) fields(s *structuralschema.Structural, depth int) any {
	out := map[string]any{}
	for _, name := range sorted(s.Properties) {
		required := s.ValueValidation != nil && slices.Contains(s.ValueValidation.Required, name)
		if d.IntN(3) > 0 || required && d.IntN(8) > 0 {
			field := s.Properties[name]
			out[name] = d.value(&field, depth+1)
		}
	}
	if more := s.AdditionalProperties; more != nil {
		for range d.IntN(3) {
			out[pick(d, names)] = d.value(more.Structural, depth+1)
		}
	}
	if s.XEmbeddedResource && depth > 0 {
		if d.IntN(6) > 0 {
			out["apiVersion"] = pick(d, []any{"v1", "apps/v1", "a/b/c", "", int64(1)})
		}
		if d.IntN(6) > 0 {
			out["kind"] = pick(d, []any{"Pod", "Thing", "", "-", int64(5)})
		}
		if d.IntN(3) > 0 {
			out["metadata"] = d.metadata()
		}
	}
	if d.IntN(6) == 0 {
		out[pick(d, names)] = d.any(depth)
	}
	return out
}

func (d draw) metadata() any {
	out := map[string]any{}
	values := map[string][]any{
		"name":                       {"a", "UPPER", "a/b", "", int64(1)},
		"namespace":                  {"default", "b_c"},
		"labels":                     {map[string]any{"a": "b"}, map[string]any{"a b": "c d"}, map[string]any{"a": int64(1)}, "x"},
		"annotations":                {map[string]any{"A": "b"}, nil},
		"finalizers":                 {[]any{"a.example/b"}, []any{"a b"}, []any{int64(1)}},
		"creationTimestamp":          {"2020-01-01T00:00:00Z", nil, "yesterday"},
		"generation":                 {int64(1), int64(-1), "1"},
		"ownerReferences":            {[]any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1"}}, []any{map[string]any{"name": "a"}}},
		"unknown":                    {"x"},
		"deletionGracePeriodSeconds": {int64(5), 1.5},
	}
	for _, name := range sorted(values) {
		of := values[name]
		if chance := d.IntN(4); chance == 0 {
			out[name] = pick(d, of)
		} else if chance == 1 {
			out[name] = of[0]
		}
	}
	return out
}

func (d draw) any(depth int) any {
	switch n := d.IntN(9); {
	case n == 0:
		return nil
	case n == 1:
		return d.IntN(2) == 0
	case n == 2:
		return pick(d, whole)
	case n == 3:
		return pick(d, broken)
	case n < 6 || depth > 5:
		return pick(d, texts)
	case n == 6:
		return []any{d.any(depth + 1)}
	case n == 7:
		return []any{d.any(depth + 1), d.any(depth + 2)}
	default:
		return map[string]any{pick(d, names): d.any(depth + 1), pick(d, names): d.any(depth + 1)}
	}
}

// changed is the value with some of it put anew, taken away or in another order.
func (d draw) changed(value any, s *structuralschema.Structural) any {
	if d.IntN(12) == 0 {
		return d.value(s, 2)
	}
	switch value := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for _, name := range sorted(value) {
			if name != "apiVersion" && name != "kind" && name != "metadata" && d.IntN(10) == 0 {
				continue
			}
			var of *structuralschema.Structural
			if s != nil {
				if field, ok := s.Properties[name]; ok {
					of = &field
				} else if s.AdditionalProperties != nil {
					of = s.AdditionalProperties.Structural
				}
			}
			out[name] = value[name]
			if d.IntN(2) == 0 && of != nil {
				out[name] = d.changed(value[name], of)
			}
		}
		return out
	case []any:
		var of *structuralschema.Structural
		if s != nil {
			of = s.Items
		}
		out := []any{}
		for _, item := range value {
			if d.IntN(10) > 0 {
				if d.IntN(3) == 0 {
					item = d.changed(item, of)
				}
				out = append(out, item)
			}
		}
		if d.IntN(4) == 0 {
			d.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		}
		return out
	}
	return value
}

func sorted[V any](of map[string]V) []string {
	var out []string
	for name := range of {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}
