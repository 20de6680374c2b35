package main

import (
	"encoding/json"
	"fmt"
)

// schema is one that is drawn: most of them structural, some with rules.
func (d draw) schema() json.RawMessage {
	root := map[string]any{"type": "object", "properties": map[string]any{
		"spec": d.part(1, false), "status": d.part(2, false), "extra": d.part(3, false),
	}}
	d.rules(root)
	text, err := json.Marshal(root)
	if err != nil {
		panic(err)
	}
	return text
}

var fieldNames = []string{"a", "b", "c", "d-e", "x.y", "if", "namespace", "__a__", "unknown", "with space"}

// part is the schema of a value. A scalar can be a key of lists.
func (d draw) part(depth int, scalar bool) map[string]any {
	out := map[string]any{}
	n := d.IntN(12)
	if scalar || depth > 3 {
		n = d.IntN(6)
	}
	maybe := func(chance int, do func()) {
		if d.IntN(chance) == 0 {
			do()
		}
	}
	switch {
	case n < 2:
		out["type"] = "string"
		maybe(3, func() { out["maxLength"] = d.IntN(12) })
		maybe(4, func() { out["minLength"] = d.IntN(4) })
		maybe(5, func() { out["pattern"] = pick(d, []string{"^[a-z]*$", "\\d", "^.{1,3}$", "a|b", "(?i)ABC"}) })
		maybe(4, func() {
			out["format"] = pick(d, []string{"date", "date-time", "duration", "byte", "uri", "ipv4", "uuid", "k8s-short-name", "none"})
		})
		maybe(5, func() { out["enum"] = []any{"a", "b", pick(d, texts)} })
	case n < 4:
		out["type"] = pick(d, []string{"integer", "number"})
		maybe(3, func() { out["minimum"] = pick(d, []any{0, 2, 0.5, -5}) })
		maybe(3, func() { out["maximum"] = pick(d, []any{5, 7.5, 100}) })
		maybe(5, func() { out["multipleOf"] = pick(d, []any{2, 0.5, 5}) })
		maybe(5, func() { out["format"] = pick(d, []string{"int32", "int64", "float", "double", "date"}) })
		maybe(6, func() { out["enum"] = []any{1, 2, 10} })
	case n == 4:
		out["type"] = "boolean"
	case n == 5:
		if scalar {
			out["type"] = "string"
		} else {
			out["x-kubernetes-int-or-string"] = true
			maybe(2, func() { out["maxLength"] = 5 })
			maybe(3, func() { out["maximum"] = 50 })
		}
	case n < 9:
		d.fieldsOf(out, depth)
	case n == 9:
		out["type"] = "object"
		out["additionalProperties"] = d.part(depth+1, false)
		maybe(2, func() { out["maxProperties"] = 1 + d.IntN(3) })
		maybe(4, func() { out["minProperties"] = d.IntN(3) })
	case n == 10:
		d.listOf(out, depth)
	default:
		out["x-kubernetes-preserve-unknown-fields"] = true
		maybe(2, func() { out["type"] = "object" })
		if out["type"] != nil {
			maybe(2, func() { out["x-kubernetes-embedded-resource"] = true })
		}
	}
	if !scalar {
		maybe(6, func() { out["nullable"] = true })
		d.logic(out)
	}
	d.rules(out)
	return out
}

func (d draw) fieldsOf(out map[string]any, depth int) {
	properties, required := map[string]any{}, []any{}
	for range 1 + d.IntN(4) {
		name := pick(d, fieldNames)
		field := d.part(depth+1, false)
		properties[name] = field
		if d.IntN(4) == 0 {
			required = append(required, name)
		}
		if d.IntN(4) == 0 {
			d.defaultOf(field)
		}
	}
	out["type"], out["properties"] = "object", properties
	if len(required) > 0 {
		out["required"] = required
	}
	if d.IntN(10) == 0 {
		out["x-kubernetes-preserve-unknown-fields"] = true
	}
}

func (d draw) defaultOf(field map[string]any) {
	switch field["type"] {
	case "string":
		field["default"] = pick(d, []any{"a", "b", "2020-01-01"})
	case "integer":
		field["default"] = pick(d, []any{1, 2, 4})
	case "number":
		field["default"] = 2.5
	case "boolean":
		field["default"] = true
	case "object":
		field["default"] = map[string]any{}
	case "array":
		field["default"] = []any{}
	}
}

func (d draw) listOf(out map[string]any, depth int) {
	out["type"] = "array"
	if d.IntN(2) == 0 {
		out["maxItems"] = 1 + d.IntN(5)
	}
	switch d.IntN(4) {
	case 0:
		out["x-kubernetes-list-type"], out["items"] = "set", d.part(depth+1, true)
	case 1:
		item := map[string]any{}
		d.fieldsOf(item, depth+1)
		keys := []any{"k"}
		properties := item["properties"].(map[string]any)
		properties["k"] = map[string]any{"type": pick(d, []string{"string", "integer"}), "enum": nil}
		delete(properties["k"].(map[string]any), "enum")
		item["required"] = []any{"k"}
		if d.IntN(2) == 0 {
			properties["l"] = map[string]any{"type": "string", "default": "a"}
			keys = append(keys, "l")
		}
		d.rules(item)
		out["x-kubernetes-list-type"], out["x-kubernetes-list-map-keys"], out["items"] = "map", keys, item
	default:
		out["items"] = d.part(depth+1, false)
	}
}

// logic adds alternatives that fit the type.
func (d draw) logic(out map[string]any) {
	if d.IntN(6) > 0 {
		return
	}
	one := func() map[string]any {
		switch out["type"] {
		case "string":
			return pick(d, []map[string]any{{"minLength": 2}, {"pattern": "^a"}, {"enum": []any{"a", "1"}}, {"format": "date"}, {"maxLength": 3}})
		case "integer", "number":
			return pick(d, []map[string]any{{"minimum": 2}, {"maximum": 7}, {"multipleOf": 5}, {"enum": []any{1, 5}}})
		case "object":
			if fields, ok := out["properties"].(map[string]any); ok {
				for _, name := range sorted(fields) {
					return pick(d, []map[string]any{
						{"required": []any{name}}, {"minProperties": 1}, {"not": map[string]any{"required": []any{name}}},
						{"properties": map[string]any{name: map[string]any{"enum": []any{"a", 1, true}}}},
					})
				}
			}
			return pick(d, []map[string]any{{"maxProperties": 1}, {"minProperties": 2}})
		case "array":
			return pick(d, []map[string]any{{"maxItems": 2}, {"minItems": 1}, {"items": map[string]any{"enum": []any{"a", 1}}}})
		}
		return map[string]any{"not": map[string]any{"enum": []any{"a", 1}}}
	}
	kind := pick(d, []string{"allOf", "anyOf", "oneOf", "not"})
	if kind == "not" {
		out[kind] = one()
		return
	}
	list := []any{}
	for range 1 + d.IntN(3) {
		list = append(list, one())
	}
	out[kind] = list
}

// rules adds some that may hold or not, and few that cannot be compiled.
func (d draw) rules(out map[string]any) {
	if d.IntN(3) > 0 {
		return
	}
	var of []string
	switch out["type"] {
	case "string":
		of = []string{"self == oldSelf", "size(string(self)) < 4", "self != 'a'", "string(self) in ['a', 'b', '1']", "self < 'b'"}
		if out["format"] == nil {
			of = append(of, "self.matches('^a')", "self.startsWith('a') || self.contains('1')", "self.size() < 2")
		}
	case "integer":
		of = []string{"self == oldSelf", "self >= oldSelf", "self % 2 == 0", "self < 6", "10 / self > 1", "self + 1 > 0", "self * self < 30"}
	case "number":
		of = []string{"self == oldSelf", "self < 6.5", "self / 2.0 > 0.1", "int(self) > 1", "self == 2"}
	case "boolean":
		of = []string{"self", "self || !oldSelf", "!self"}
	case "array":
		of = []string{"self == oldSelf", "self.size() < 3", "self.all(x, x == self[0])", "self.exists_one(x, true)", "oldSelf.all(x, x in self)",
			"self.map(x, string(x)).size() > 0", "size(self + self) < 5", "self == self + []"}
	case "object":
		of = []string{"self == oldSelf", "!(self != oldSelf)", "type(self) == map"}
		if fields, ok := out["properties"].(map[string]any); ok {
			for _, name := range sorted(fields) {
				at := "self." + map[string]string{"d-e": "d__dash__e", "x.y": "x__dot__y", "if": "__if__", "namespace": "__namespace__",
					"__a__": "__underscores__a__underscores__"}[name]
				if at == "self." {
					at += name
				}
				if name == "with space" {
					continue
				}
				of = append(of, fmt.Sprintf("has(%s)", at), fmt.Sprintf("!has(%s) || %s == %s", at, at, at),
					fmt.Sprintf("!has(%s) || string(%s) != 'b'", at, at), fmt.Sprintf("has(%s) == has(old%s)", at, "S"+at[1:]))
			}
		} else if out["additionalProperties"] != nil {
			of = append(of, "self.size() < 2", "self.all(k, k != 'a')", "self.all(k, self[k] == self[k])", "'a' in self",
				"oldSelf.all(k, k in self)")
		}
	default:
		of = []string{"self == oldSelf", "type(self) == int", "string(self) != 'a'", "self != 5"}
	}
	list := []any{}
	for range 1 + d.IntN(2) {
		rule := map[string]any{"rule": pick(d, of)}
		switch d.IntN(6) {
		case 0:
			rule["message"] = " said\tso "
		case 1:
			rule["messageExpression"] = "'is ' + string(1 + 1)"
		case 2:
			rule["reason"] = pick(d, []string{"FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"})
		case 3:
			if fields, ok := out["properties"].(map[string]any); ok {
				rule["fieldPath"] = "['" + sorted(fields)[0] + "']"
			}
		}
		list = append(list, rule)
	}
	out["x-kubernetes-validations"] = list
}
