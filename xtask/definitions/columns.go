package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What columns show of two objects. The times in them are long ago, so that their age is in years.
var objects = []string{
	`{"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "n", "labels": {"a.b/c": "l", "plain": "p"}, "creationTimestamp": "1990-01-02T03:04:05Z"},
	  "spec": {"replicas": 3, "ratio": 0.5, "big": 1e30, "small": 1e-7, "whole": 2.0, "yes": true, "no": false, "text": "text", "empty": "", "null": null,
	    "time": "1970-01-01T00:00:00Z", "fine": "1970-01-01T00:00:00.5+01:00", "late": "soon", "zero": "0001-01-01T00:00:00Z",
	    "list": ["a", "b", "c", "d"], "numbers": [1, 2, 3.5, -4], "lists": [[1], [2, 3], []], "map": {"a": 1}, "html": {"x": "<&>"},
	    "items": [{"name": "a", "n": 1, "ok": true}, {"name": "b", "n": 2, "ok": false, "in": [{"v": "x"}]}, {"name": "c c", "n": 2.5}], "a.b": "dotted", "weird key": "w"},
	  "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "a)b"}, {"type": "Other", "status": "False"}]}}`,
	`{"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "m"}, "spec": {"list": [], "items": {"name": "no list"}, "replicas": "3"}}`,
}

var paths = []string{
	".spec.replicas", ".spec.ratio", ".spec.big", ".spec.small", ".spec.whole", ".spec.yes", ".spec.no", ".spec.text", ".spec.empty", ".spec.null",
	".spec.time", ".spec.fine", ".spec.late", ".spec.zero", ".metadata.creationTimestamp", ".metadata.labels.plain", `.metadata.labels.a\.b/c`,
	".metadata.labels['a\\.b/c']", ".metadata.labels['a.b/c']", `.spec['a\.b']`, ".spec['weird key']", ".spec.weird\\ key", ".spec.weird key",
	".spec.list", ".spec.list[0]", ".spec.list[-1]", ".spec.list[1:3]", ".spec.list[::2]", ".spec.list[*]", ".spec.list[9]", ".spec.list[2:1]", ".spec.list[1,2]",
	".spec.list[3:]", ".spec.list[:2]", ".spec.list[-2:]", ".spec.list[:-1]", ".spec.list[0:4:3]", ".spec.list[0:4:0]", ".spec.list[]", ".spec.list[a]", ".spec.list[1", ".spec.list[0,9]",
	".spec.list[:]", ".spec.list[1:1]", ".spec.list[4:4]", ".spec.list[-9]", ".spec.list[-]",
	".spec.numbers", ".spec.numbers[2]", ".spec.numbers[3]", ".spec.numbers[?(@>1)]", ".spec.lists[*][0]", ".spec.lists[1][1]", ".spec.lists[2][0]", ".spec.map", ".spec.html", ".spec.map.a",
	".spec.items[*].name", ".spec.items[?(@.name=='b')].n", `.spec.items[?(@.name=="b")].n`, ".spec.items[?(@.n==2)].name", ".spec.items[?(@.n>1)].name", ".spec.items[?(@.n<=1)].name",
	".spec.items[?(@.ok)].name", ".spec.items[?(@.ok==true)].name", ".spec.items[?(@.ok!=true)].name", ".spec.items[?(@.in)].name", ".spec.items[?(@.in[0].v=='x')].name",
	`.spec.items[?(@.name=="c c")].n`, ".spec.items[?(@.name>'a')].name", ".spec.items[?(@.n==2.5)].name", ".spec.items[?(@.none==1)].name", ".spec.items[?(@.name=='b'].n", ".spec.items[?(@.name~'b')].n",
	".spec.items[?(@.name=)].n", ".spec.items[?(=1)].n", ".spec.items[?(@.name==)].n", ".spec.items[?()].n", ".spec.items[?(@.name===\"a\")].n", ".spec.items[?(@.ok<true)].name",
	".spec.items.name", ".spec.items['name']", ".spec.items[0]['name']", ".spec.items[0,1].name",
	`.status.conditions[?(@.type=="Ready")].status`, `.status.conditions[?(@.type == "Ready")].status`, `.status.conditions[?(@.type=='Other')].status`, `.status.conditions[?(@.reason=="a)b")].type`,
	`.status.conditions[?(@.type=="None")].status`, ".status.conditions[?(@.status=='True')].type", ".status.conditions", ".status.none.at.all",
	".", "..", "..name", "...name", "..conditions[0].type", "..status..type", "..[0]", "....", ".spec..", ".*", ".metadata.name.*", ".spec.map.*", ".kind", "$.kind", "@.kind", "kind", "", " .kind", ".kind ", ".kind\t", ".kind\n",
	".kind}", ".kind} {.metadata.name", ".kind}{.spec.list[9]", "{.kind}", ".kind.name", ".kind{", ".spec.text\"q\"", ".spec.text'q'", ".spec.text 5", ".spec.text 1.5", ".spec.text +3", ".spec.text 1.2.3", ".spec.text true", ".spec.text word",
	`"a\tb"`, `'a\'b'`, `"a`, `'\x41\u00e9\101'`, `"\q"`, ".spec[replicas]", ".spec[\"replicas\"]", ".spec['replicas']", ".spec['replicas','text']", ".spec['re'plicas']", ".spec!", ".spec.%", "#", "(.kind)", ".spec.list[0][0]", ".spec.text[0]", ".spec.null[0]", ".spec.null.a", ".é", ".spec.list[1:2:3:4]",
	"range .spec.list[*]", "end",
}

var types = []string{"string", "integer", "number", "boolean", "date"}

// Changes a path: takes something away, doubles it, or puts something in.
func mutated(random *rand.Rand, path string) string {
	if path == "" {
		return pick(random, paths)
	}
	at := random.IntN(len(path))
	switch random.IntN(3) {
	case 0:
		return path[:at] + path[at+1:]
	case 1:
		end := min(len(path), at+1+random.IntN(4))
		return path[:end] + path[at:]
	}
	return path[:at] + pick(random, strings.Split(`.|[|]|'|"|*|?|(|)|@|0|-1|:|,|=|<|\|.spec|[0]|[*]|{|}| |$|..`, "|")) + path[at:]
}

func columns(n int, seed uint64) ([]byte, error) {
	var lines bytes.Buffer
	var parsed []*unstructured.Unstructured
	for _, text := range objects {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON([]byte(text)); err != nil {
			return nil, err
		}
		parsed = append(parsed, object)
		if err := line(&lines, map[string]any{"object": json.RawMessage(text)}); err != nil {
			return nil, err
		}
	}
	all := append([]string{}, paths...)
	for i := range n {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		path := mutated(random, pick(random, paths))
		if random.IntN(3) == 0 {
			path = mutated(random, path)
		}
		all = append(all, path)
	}
	for _, path := range all {
		cells, ok := cellsOf(path, parsed)
		// What a path leads to may be one of several, in any order.
		for range runs {
			again, _ := cellsOf(path, parsed)
			if !bytes.Equal(again, cells) {
				ok = false
			}
		}
		if !ok {
			continue
		}
		if err := line(&lines, map[string]any{"path": path, "cells": json.RawMessage(cells)}); err != nil {
			return nil, err
		}
	}
	return lines.Bytes(), nil
}

// The cells of all types, by object; null for a path that cannot be read.
func cellsOf(path string, objects []*unstructured.Unstructured) (text []byte, ok bool) {
	defer func() {
		if recover() != nil {
			text, ok = nil, false
		}
	}()
	var definitions []v1.CustomResourceColumnDefinition
	for _, kind := range types {
		definitions = append(definitions, v1.CustomResourceColumnDefinition{Name: kind, Type: kind, JSONPath: path})
	}
	convertor, err := tableconvertor.New(definitions)
	if err != nil {
		return []byte("null"), true
	}
	var rows [][]any
	for _, object := range objects {
		table, err := convertor.ConvertToTable(context.Background(), object.DeepCopy(), &metav1.TableOptions{})
		if err != nil {
			return nil, false
		}
		rows = append(rows, table.Rows[0].Cells[1:])
	}
	text, err = json.Marshal(rows)
	return text, err == nil
}
