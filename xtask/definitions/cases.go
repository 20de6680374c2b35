package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
)

const root = "/spec/versions/0/schema/openAPIV3Schema"

// What is set at a place of a base, for each of the ways to come to it.
var hand = []struct{ base, at, value string }{
	{"plain", "/metadata/name", `"other.example.com"`},
	{"plain", "/metadata/name", `"widgets"`},
	{"plain", "/spec/group", `""`},
	{"plain", "/spec/group", `"example"`},
	{"plain", "/spec/group", `"Example.com"`},
	{"plain", "/spec/group", `"` + strings.Repeat("a", 250) + `.com"`},
	{"plain", "/spec/scope", `""`},
	{"plain", "/spec/scope", `"World"`},
	{"plain", "/spec/names", `{}`},
	{"plain", "/spec/names", `{"plural": "widgets"}`},
	{"plain", "/spec/names/plural", `"Widgets"`},
	{"plain", "/spec/names/plural", `"gadgets"`},
	{"plain", "/spec/names/kind", `"widget_kind"`},
	{"plain", "/spec/names/kind", `"` + strings.Repeat("K", 64) + `"`},
	{"plain", "/spec/names/kind", `"Other"`},
	{"plain", "/spec/names/listKind", `"Widget"`},
	{"plain", "/spec/names/singular", `"-"`},
	{"plain", "/spec/names/shortNames", `["w", "W", "", "1"]`},
	{"plain", "/spec/names/categories", `["all", "a.b"]`},
	{"plain", "/spec/preserveUnknownFields", `true`},
	{"plain", "/spec/preserveUnknownFields", `false`},
	{"plain", "/spec/versions", `[]`},
	{"plain", "/spec/versions/0/name", `"1"`},
	{"plain", "/spec/versions/0/storage", `false`},
	{"plain", "/spec/versions/0/served", `false`},
	{"plain", "/spec/versions/0/schema", `null`},
	{"plain", "/spec/versions/0/schema", `{}`},
	{"plain", "/spec/versions/1", `{"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}`},
	{"plain", "/spec/versions/1", `{"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}`},
	{"plain", "/spec/versions/1", `{"name": "v2", "served": true, "storage": false}`},
	{"plain", "/spec/versions/1", `{"name": "v2", "served": false, "storage": false}`},
	{"plain", "/spec/versions/0/deprecated", `true`},
	{"plain", "/spec/versions/0/deprecationWarning", `"gone soon"`},
	{"versions", "/spec/versions/1/deprecationWarning", `""`},
	{"versions", "/spec/versions/1/deprecationWarning", `"a\u0007b"`},
	{"versions", "/spec/versions/1/deprecationWarning", `"a\u00a0b"`},
	{"versions", "/spec/versions/1/deprecationWarning", `"` + strings.Repeat("x", 257) + `"`},
	{"versions", "/spec/versions/1/deprecationWarning", `"` + strings.Repeat("é", 129) + `\n"`},
	{"plain", "/spec/conversion", `{"strategy": "Some"}`},
	{"plain", "/spec/conversion", `{"strategy": ""}`},
	{"plain", "/spec/conversion", `{"strategy": "None", "webhook": {"conversionReviewVersions": ["v1"]}}`},
	{"plain", "/spec/conversion", `{"strategy": "None", "webhook": {"conversionReviewVersions": [], "clientConfig": {"url": "https://a.b"}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook"}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"]}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v3", "v3", "A"], "clientConfig": {"url": "https://a.b"}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "http://u:p@a.b/c?d=e#f"}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://"}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://a.b", "service": {"name": "a", "namespace": "b"}}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service": {"name": "", "namespace": "b", "port": 70000}}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service": {"name": "a", "namespace": "", "port": 0, "path": "a//B/"}}}}`},
	{"plain", "/spec/conversion", `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service": {"name": "a", "namespace": "b", "path": "//"}, "caBundle": "YQ=="}}}`},
	{"versions", "/spec/conversion/webhook/clientConfig/caBundle", `"YQ=="`},
	{"versions", "/spec/conversion/webhook/conversionReviewVersions", `["v2"]`},
	{"versions", "/spec/preserveUnknownFields", `true`},
	{"versions", "/spec/versions/0/additionalPrinterColumns", `[{"name": "", "type": "", "jsonPath": ""}, {"name": "a", "type": "text", "format": "int8", "jsonPath": "spec"}, {"name": "b", "type": "date", "jsonPath": "."}]`},
	{"versions", "/spec/versions/0/selectableFields", `[{"jsonPath": ""}, {"jsonPath": ".spec.replicas"}, {"jsonPath": ".spec.replicas"}, {"jsonPath": ".metadata.name"}, {"jsonPath": ".spec"}, {"jsonPath": "spec"}, {"jsonPath": ".spec.none"}, {"jsonPath": ".spec.labels.a"}, {"jsonPath": ".spec['port']"}, {"jsonPath": "."}, {"jsonPath": ".spec.names.a"}, {"jsonPath": ".spec..port"}]`},
	{"versions", "/spec/versions/0/selectableFields", `[{"jsonPath": ".spec.labels.a"}, {"jsonPath": ".spec.labels.b"}, {"jsonPath": ".spec.labels.c"}, {"jsonPath": ".spec.labels.d"}, {"jsonPath": ".spec.labels.e"}, {"jsonPath": ".spec.labels.f"}, {"jsonPath": ".spec.labels.g"}, {"jsonPath": ".spec.labels.h"}, {"jsonPath": ".spec.labels.i"}]`},
	{"versions", "/spec/versions/2/selectableFields", `[{"jsonPath": ".spec.port"}]`},
	{"plain", "/spec/versions/0/selectableFields", `[{"jsonPath": ".spec.size"}]`},
	{"plain", "/spec/versions/0/selectableFields", `[{"jsonPath": ".spec.none"}]`},
	{"versions", "/spec/versions/0/subresources/scale", `{"specReplicasPath": "", "statusReplicasPath": ""}`},
	{"versions", "/spec/versions/0/subresources/scale", `{"specReplicasPath": ".status.a", "statusReplicasPath": ".spec.a", "labelSelectorPath": ".metadata.a"}`},
	{"versions", "/spec/versions/0/subresources/scale", `{"specReplicasPath": "spec.a", "statusReplicasPath": "status", "labelSelectorPath": "a"}`},
	{"versions", "/spec/versions/0/subresources/scale", `{"specReplicasPath": ".spec", "statusReplicasPath": ".status.", "labelSelectorPath": ""}`},
	{"monitors", "/spec/versions/0/subresources", `{"scale": {"specReplicasPath": "x", "statusReplicasPath": ".status.a"}}`},
	{"routes", "/metadata/annotations", `{}`},
	{"routes", "/metadata/annotations", `{"api-approved.kubernetes.io": "unapproved, for a try"}`},
	{"routes", "/metadata/annotations", `{"api-approved.kubernetes.io": "yes"}`},
	{"routes", "/metadata/annotations", `{"api-approved.kubernetes.io": "https://"}`},
	{"routes", "/metadata/annotations", `{"api-approved.kubernetes.io": "/a/b"}`},
	{"plain", root, `null`},
	{"plain", root, `{}`},
	{"plain", root, `{"type": "string"}`},
	{"plain", root, `{"type": "object", "nullable": true}`},
	{"plain", root, `{"type": "object", "additionalProperties": {"type": "string"}}`},
	{"plain", root, `{"type": "object", "x-kubernetes-embedded-resource": true}`},
	{"plain", root, `{"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}`},
	{"plain", root, `{"type": "object", "properties": {"metadata": {"type": "string"}, "kind": {"type": "object"}, "apiVersion": {}}}`},
	{"plain", root, `{"type": "object", "properties": {"metadata": {"type": "object", "default": {}, "properties": {"name": {"type": "string", "default": "x"}}}}}`},
	{"plain", root, `{"type": "object", "properties": {"kind": {"type": "string", "default": "x"}}}`},
	{"plain", root, `{"type": "object", "default": {"a": 1}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "string", "format": "nonsense"}, "b": {"type": "integer", "format": "int16"}, "c": {"type": "object", "format": "date"}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "string", "format": "k8s-short-name"}, "b": {"type": "number", "format": "float"}, "c": {"format": "uuid", "x-kubernetes-int-or-string": true}}}`},
	{"plain", root, `{"type": "object", "required": ["a", "a"], "properties": {"a": {"type": "null"}, "b": {"type": "any"}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"$ref": "#/b", "id": "x", "$schema": "s", "definitions": {"a": {"type": "string"}}, "dependencies": {"a": ["b"]}, "patternProperties": {"a": {"type": "string"}}, "additionalItems": true, "type": "object"}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "additionalProperties": false}, "b": {"type": "object", "additionalProperties": {"type": "string"}, "properties": {"c": {"type": "string"}}}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "string", "pattern": "("}, "b": {"type": "string", "pattern": "[z-a]"}, "c": {"type": "string", "allOf": [{"pattern": "a**"}]}, "d": {"type": "string", "pattern": "(?<=x)y"}, "e": {"type": "string", "pattern": "a{1001}"}, "f": {"type": "string", "pattern": "\\8"}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-validations": [{"rule": ""}, {"rule": "true", "message": " "}, {"rule": "true", "message": "a\nb"}, {"rule": "true\n", "messageExpression": " "}, {"rule": "true", "reason": "Bad"}, {"rule": "true", "fieldPath": " "}, {"rule": "true", "fieldPath": "a\n"}, {"rule": "true", "fieldPath": ".b"}, {"rule": "true\n&& true"}]}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "object", "additionalProperties": {"type": "string"}}}, "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".b['c']"}, {"rule": "true", "fieldPath": "['b']"}, {"rule": "true", "fieldPath": ".b.c.d"}, {"rule": "true", "fieldPath": ".b["}, {"rule": "true", "fieldPath": ".b['c'"}, {"rule": "true", "fieldPath": "b"}, {"rule": "true", "fieldPath": ".b['\\x41']"}]}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "uniqueItems": true, "anyOf": [{"x-kubernetes-validations": [{"rule": "true"}]}, {"properties": {"metadata": {}}}, {"additionalProperties": {"minLength": 1}}, {"items": {"minLength": 1}}]}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "integer", "default": "x"}, "b": {"type": "object", "default": {"c": 1}}, "d": {"type": "object", "properties": {"e": {"type": "string"}}, "default": {"e": 1, "f": 2}}, "g": {"type": "string", "nullable": true, "default": null}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true, "default": {"metadata": {"name": "A B", "labels": {"a": 1}}}}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true, "default": {"apiVersion": "v1", "kind": "A", "metadata": {"name": "A B"}}}}}`},
	{"plain", root, `{"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {"type": "string", "default": "c"}}}}}}`},
	{"rules", root + "/properties/spec/x-kubernetes-validations", `[{"rule": "self.none == 1"}, {"rule": "self.min +"}, {"rule": "self.min"}, {"rule": "self.min < self.kind"}, {"rule": "true", "messageExpression": "self.min"}, {"rule": "true", "messageExpression": "("}, {"rule": "true", "optionalOldSelf": true}, {"rule": "oldSelf.hasValue() ? oldSelf.value().min == self.min : true", "optionalOldSelf": true}]`},
	{"rules", root + "/properties/spec/properties/tags/items/x-kubernetes-validations", `[{"rule": "self == oldSelf"}]`},
	{"rules", root + "/properties/spec/properties/labels/additionalProperties/x-kubernetes-validations", `[{"rule": "self == oldSelf"}]`},
	{"rules", root + "/properties/spec/properties/tags/maxItems", `null`},
	{"rules", root + "/properties/spec/properties/tags/x-kubernetes-validations", `[{"rule": "self.all(a, self.all(b, self.all(c, a != b || b != c)))"}]`},
	{"rules", root + "/properties/spec/properties/extra", `{"type": "array", "items": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self.contains('x')"}]}}}`},
	{"rules", root + "/properties/spec/properties/extra", `{"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": "self.all(x, self.exists_one(y, y == x))"}]}`},
	{"rules", root + "/properties/spec/properties/extra", `{"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-validations": [{"rule": "self.kind == 'Pod' && self.metadata.name != ''"}, {"rule": "self.spec == 1"}]}`},
	{"rules", root + "/properties/spec/properties/min/default", `50`},
	{"rules", root + "/properties/spec/default", `{"min": 9, "max": 1}`},
	{"rules", root + "/properties/spec/default", `{"min": 1, "max": 2}`},
	{"rules", root + "/properties/spec/properties/tags/default", `["b"]`},
	{"rules", root + "/properties/spec/x-kubernetes-preserve-unknown-fields", `true`},
	{"rules", root + "/properties/spec/properties/if", `{"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}`},
	{"rules", root + "/x-kubernetes-validations", `[{"rule": "self.spec.max > 1 && self.kind == 'Order' && self.apiVersion != '' && self.metadata.generateName == ''"}, {"rule": "self.metadata.labels.size() > 0"}]`},
	{"nested", root + "/properties/spec/properties/child/properties/metadata/properties/labels/additionalProperties/default", `"x"`},
	{"nested", root + "/properties/spec/properties/child/properties/metadata/default", `{"name": "A B"}`},
	{"nested", root + "/properties/spec/properties/child/properties/metadata/default", `{"labels": {"a": "b"}}`},
	{"nested", root + "/properties/spec/properties/child/properties/apiVersion/default", `"a/b/c"`},
	{"nested", root + "/properties/spec/properties/child/properties/metadata/x-kubernetes-embedded-resource", `true`},
}

// All that is written by hand, created and as an update of the base.
func byHand(bases []base) []theCase {
	var cases []theCase
	for _, b := range bases {
		cases = append(cases, theCase{base: b, op: "create"}, theCase{base: b, op: "update", established: true}, theCase{base: b, op: "status"})
	}
	for _, h := range hand {
		for _, b := range bases {
			if b.name != h.base {
				continue
			}
			var value any
			if err := json.Unmarshal([]byte(h.value), &value); err != nil {
				panic(fmt.Sprint(h.value, err))
			}
			edits := []edit{{At: h.at, Value: value, Gone: value == nil}}
			cases = append(cases, theCase{base: b, op: "create", edits: edits})
			for _, established := range []bool{false, true} {
				cases = append(cases,
					theCase{base: b, op: "update", edits: edits, established: established},
					theCase{base: b, op: "update", before: edits, edits: edits, established: established},
					theCase{base: b, op: "update", before: edits, established: established})
			}
		}
	}
	for _, names := range []string{`{"plural": "A", "kind": "a b"}`, `{"plural": "a", "kind": "A", "listKind": "A", "shortNames": ["B"]}`} {
		var value any
		_ = json.Unmarshal([]byte(names), &value)
		cases = append(cases, theCase{base: bases[0], op: "status", edits: []edit{{At: "/status/acceptedNames", Value: value}}})
	}
	return cases
}

func atRandom(bases []base, n int, seed uint64) []theCase {
	var cases []theCase
	for i := range n {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		c := theCase{base: pick(random, bases), op: "create"}
		c.edits = someEdits(random, c.base.document, nil)
		if random.IntN(3) == 0 {
			c.op, c.established = "update", random.IntN(2) == 0
			if random.IntN(2) == 0 {
				c.before = c.edits
				c.edits = append(append([]edit{}, c.before...), someEdits(random, c.base.document, c.before)...)
			}
		}
		cases = append(cases, c)
	}
	return cases
}

func someEdits(random *rand.Rand, document any, before []edit) []edit {
	var edits []edit
	for range 1 + random.IntN(8)/6 {
		current, err := edited(document, append(append([]edit{}, before...), edits...))
		if err != nil {
			return edits
		}
		edits = append(edits, oneEdit(random, current))
	}
	return edits
}

// What a schema may be given at a place, as JSON. Of what is empty, Go keeps some apart from nothing; we keep none of it.
var pool = map[string][]string{
	"type":                                 {`"string"`, `"integer"`, `"object"`, `"array"`, `"number"`, `"boolean"`, `"null"`, `"any"`, `""`},
	"format":                               {`"int32"`, `"date-time"`, `"ipv4"`, `"odd"`, `"double"`, `"k8s-long-name"`},
	"nullable":                             {`true`, `false`},
	"default":                              {`1`, `"a"`, `{}`, `[]`, `true`, `{"a": 1}`, `["a"]`, `1.5`, `{"name": "n", "count": 9}`, `{"x": 1, "y": 2}`, `null`},
	"description":                          {`"said"`, `""`},
	"title":                                {`"t"`},
	"maximum":                              {`1`, `0.5`, `-1`},
	"minimum":                              {`2`, `0`},
	"exclusiveMaximum":                     {`true`},
	"maxLength":                            {`0`, `3`},
	"minLength":                            {`4`},
	"pattern":                              {`"^a"`, `"("`, `"[a"`, `"a{2,1}"`, `"\\pX"`, `"(?P<n>a"`, `"*"`, `"x{2000}"`},
	"maxItems":                             {`1`},
	"minItems":                             {`2`},
	"uniqueItems":                          {`true`, `false`},
	"maxProperties":                        {`1`},
	"minProperties":                        {`1`},
	"multipleOf":                           {`2`, `0.1`},
	"enum":                                 {`["a"]`, `[1, 2]`, `[]`, `[null]`},
	"required":                             {`["name"]`, `["a", "b"]`, `["row", "side"]`},
	"items":                                {`{"type": "string"}`, `{}`, `{"type": "object"}`, `[{"type": "string"}]`, `{"type": "array", "items": {"type": "integer"}}`, `{"type": "string", "nullable": true}`},
	"allOf":                                {`[{"minLength": 1}]`, `[{"type": "string"}]`, `[{"anyOf": [{"type": "integer"}, {"type": "string"}]}]`, `[{"properties": {"a": {"minimum": 1}}}]`, `[{"required": ["a"]}, {"items": {"pattern": "("}}]`},
	"anyOf":                                {`[{"type": "integer"}, {"type": "string"}]`, `[{"type": "string"}, {"type": "integer"}]`, `[{"required": ["a"]}]`, `[{"properties": {"spec": {"required": ["a"]}, "metadata": {"maxProperties": 3}}}]`, `[{"default": 1}, {"title": "x", "description": "y"}]`},
	"oneOf":                                {`[{"nullable": true}]`, `[{"x-kubernetes-int-or-string": true}]`, `[{"enum": [1]}, {"not": {"enum": [2]}}]`, `[{"x-kubernetes-list-type": "set", "x-kubernetes-map-type": "atomic", "x-kubernetes-list-map-keys": ["a"]}]`},
	"not":                                  {`{}`, `{"type": "string"}`, `{"items": {"maxLength": 2}}`, `{"x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-embedded-resource": true}`, `{"additionalProperties": true}`},
	"properties":                           {`{}`, `{"a": {"type": "string"}}`, `{"metadata": {"type": "object"}, "b": {"type": "integer", "default": 2}}`, `{"a": {}}`, `{"metadata": {"type": "object", "properties": {"name": {"type": "string", "default": "d"}}}}`},
	"additionalProperties":                 {`true`, `false`, `{"type": "string"}`, `{}`, `{"type": "object", "properties": {"a": {"type": "string", "default": "b"}}}`},
	"additionalItems":                      {`true`},
	"patternProperties":                    {`{"a": {"type": "string"}}`},
	"definitions":                          {`{"a": {"type": "string"}}`},
	"dependencies":                         {`{"a": ["b"]}`},
	"$ref":                                 {`"#/a"`},
	"$schema":                              {`"http://json-schema.org/draft-04/schema#"`},
	"id":                                   {`"a"`},
	"example":                              {`{"a": 1}`},
	"externalDocs":                         {`{"url": "https://a.b"}`},
	"x-kubernetes-list-type":               {`"set"`, `"map"`, `"atomic"`, `"other"`},
	"x-kubernetes-map-type":                {`"atomic"`, `"granular"`, `"other"`},
	"x-kubernetes-list-map-keys":           {`["name"]`, `["row"]`, `["row", "row"]`, `["weight", "side"]`, `["type"]`},
	"x-kubernetes-int-or-string":           {`true`, `false`},
	"x-kubernetes-embedded-resource":       {`true`, `false`},
	"x-kubernetes-preserve-unknown-fields": {`true`, `false`},
	"x-kubernetes-validations":             {`[{"rule": "self == oldSelf"}]`, `[{"rule": "self.size() > 0"}]`, `[{"rule": "has(self.a)"}]`, `[{"rule": "self >= 0"}]`, `[{"rule": "self.spec.max > 0"}]`, `[{"rule": "true"}]`, `[{"rule": ""}]`, `[{"rule": "true", "message": "m", "fieldPath": ".a"}]`, `[{"rule": "true", "reason": "FieldValueOdd"}]`},
}

// What may be said outside of schemas.
var outside = map[string][]string{
	"/metadata/name":                            {`"a.b"`},
	"/spec/group":                               {`"other.io"`, `"a.k8s.io"`, `"UPPER"`},
	"/spec/scope":                               {`"Cluster"`, `"Namespaced"`, `"x"`},
	"/spec/names/plural":                        {`"others"`, `""`, `"o.o"`},
	"/spec/names/singular":                      {`"other"`, `""`, `"O"`},
	"/spec/names/kind":                          {`"Other"`, `""`, `"a-b"`, `"a_b"`},
	"/spec/names/listKind":                      {`"OtherList"`, `""`, `"Box"`},
	"/spec/names/shortNames/0":                  {`"o"`, `"O"`, `""`},
	"/spec/names/categories/0":                  {`"all"`, `"A"`},
	"/spec/preserveUnknownFields":               {`true`, `false`},
	"/spec/versions/0/name":                     {`"v2"`, `"V"`, `""`, `"v1beta1"`},
	"/spec/versions/0/storage":                  {`true`, `false`},
	"/spec/versions/0/served":                   {`true`, `false`},
	"/spec/versions/0/deprecated":               {`true`},
	"/spec/versions/0/deprecationWarning":       {`"w"`, `""`},
	"/spec/versions/0/subresources":             {`null`, `{}`, `{"status": {}}`, `{"scale": {"specReplicasPath": ".spec.a", "statusReplicasPath": ".spec.b"}}`},
	"/spec/versions/0/additionalPrinterColumns": {`[]`, `[{"name": "a", "type": "string", "jsonPath": ".a"}]`, `[{"name": "a", "type": "date", "format": "x", "jsonPath": "a"}]`},
	"/spec/versions/0/selectableFields":         {`[{"jsonPath": ".spec.size"}]`, `[{"jsonPath": ".spec.version"}, {"jsonPath": ".spec.version"}]`, `[{"jsonPath": ".spec"}]`, `[{"jsonPath": ".metadata"}]`},
	"/spec/versions/0/schema":                   {`null`, `{}`, `{"openAPIV3Schema": {"type": "object"}}`},
	"/spec/versions/1":                          {`{"name": "v9", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}`, `{"name": "v1", "served": false, "storage": true}`},
	"/spec/conversion":                          {`null`, `{"strategy": "None"}`, `{"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://a.b/c"}}}`, `{"strategy": "Odd"}`},
}

func oneEdit(random *rand.Rand, document any) edit {
	if random.IntN(5) == 0 {
		return fromPool(random, outside, "")
	}
	var places []string
	schemas(document, "", &places)
	if len(places) == 0 {
		return fromPool(random, outside, "")
	}
	sort.Strings(places)
	at := pick(random, places)
	if random.IntN(6) == 0 {
		if here, ok := lookup(document, at).(map[string]any); ok && len(here) > 0 {
			return edit{At: at + "/" + escaped(pick(random, sorted(here))), Gone: true}
		}
	}
	return fromPool(random, pool, at+"/")
}

func fromPool(random *rand.Rand, from map[string][]string, before string) edit {
	name := pick(random, sorted(from))
	var value any
	text := pick(random, from[name])
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		panic(fmt.Sprint(text, err))
	}
	return edit{At: before + name, Value: value, Gone: value == nil}
}

func sorted[T any](of map[string]T) []string {
	var names []string
	for name := range of {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func escaped(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

func lookup(document any, pointer string) any {
	for _, step := range steps(pointer) {
		switch at := document.(type) {
		case map[string]any:
			document = at[step]
		case []any:
			var index int
			if _, err := fmt.Sscan(step, &index); err != nil || index >= len(at) {
				return nil
			}
			document = at[index]
		default:
			return nil
		}
	}
	return document
}

// The places of all schemas of a definition.
func schemas(document any, _ string, places *[]string) {
	versions, _ := lookup(document, "/spec/versions").([]any)
	for i := range versions {
		at := fmt.Sprintf("/spec/versions/%d/schema/openAPIV3Schema", i)
		within(lookup(document, at), at, places)
	}
}

func within(schema any, at string, places *[]string) {
	here, ok := schema.(map[string]any)
	if !ok {
		return
	}
	*places = append(*places, at)
	for _, name := range []string{"items", "additionalProperties", "not"} {
		within(here[name], at+"/"+name, places)
	}
	for _, name := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := here[name].([]any)
		for i, below := range list {
			within(below, fmt.Sprintf("%s/%s/%d", at, name, i), places)
		}
	}
	properties, _ := here["properties"].(map[string]any)
	for name, below := range properties {
		within(below, at+"/properties/"+escaped(name), places)
	}
}
