package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
)

// sources are the comments of upstream's packages, which hold what is known of a field in no other place.
type sources struct {
	packages map[string]map[string]*ast.StructType
	// Features that are off by default, by name.
	off map[string]bool
}

// markers are the facts that the comment of a field states, as words of the schema file.
func (s *sources) markers(t reflect.Type, field string) ([]string, error) {
	types, err := s.of(t.PkgPath())
	if err != nil {
		return nil, err
	}
	found := types[t.Name()]
	if found == nil {
		return nil, fmt.Errorf("%s has no type %s in its sources", t.PkgPath(), t.Name())
	}
	for _, declared := range found.Fields.List {
		if !declares(declared, field) {
			continue
		}
		return append(words(declared.Doc), s.state(declared.Doc)...), nil
	}
	return nil, fmt.Errorf("%s has no field %s in its sources", t, field)
}

func declares(field *ast.Field, name string) bool {
	for _, ident := range field.Names {
		if ident.Name == name {
			return true
		}
	}
	if len(field.Names) > 0 {
		return false
	}
	embedded := field.Type
	if selector, ok := embedded.(*ast.SelectorExpr); ok {
		return selector.Sel.Name == name
	}
	ident, ok := embedded.(*ast.Ident)
	return ok && ident.Name == name
}

// of parses a package's own files, without its tests.
func (s *sources) of(path string) (map[string]*ast.StructType, error) {
	if known, ok := s.packages[path]; ok {
		return known, nil
	}
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}\n{{range .GoFiles}}{{.}}\n{{end}}", path).Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", path, err)
	}
	lines := strings.Fields(string(out))
	types := map[string]*ast.StructType{}
	for _, name := range lines[1:] {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(lines[0], name), nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if spec, ok := node.(*ast.TypeSpec); ok {
				if structure, ok := spec.Type.(*ast.StructType); ok {
					types[spec.Name.Name] = structure
				}
			}
			return true
		})
	}
	s.packages[path] = types
	return types, nil
}

// facts are the markers that the schema keeps and what it calls them, in the order that it has them in.
var facts = []struct{ fact, first, second string }{
	{"list", "listType", ""},
	{"keys", "listMapKey", ""},
	{"patch", "patchStrategy", ""},
	{"merge-key", "patchMergeKey", ""},
	{"map", "mapType", "structType"},
	{"default", "default", ""},
}

// state says whether a field belongs to a feature that is off, or to several of which one is.
func (s *sources) state(doc *ast.CommentGroup) []string {
	for _, gates := range stated(doc)["featureGate"] {
		for _, gate := range strings.Split(gates, ",") {
			if s.off[gate] && !loose[gate] {
				return []string{"off"}
			}
		}
	}
	return nil
}

// loose are gates without which their field is not just left out.
var loose = map[string]bool{"CrossNamespaceVolumeDataSource": true}

// stated are the lines of a comment that are markers: `+key=value`.
func stated(doc *ast.CommentGroup) map[string][]string {
	values := map[string][]string{}
	if doc != nil {
		for _, comment := range doc.List {
			line := strings.TrimSpace(strings.TrimPrefix(comment.Text, "//"))
			marker, isMarker := strings.CutPrefix(line, "+")
			if key, value, ok := strings.Cut(marker, "="); isMarker && ok {
				key = strings.TrimSpace(key)
				values[key] = append(values[key], strings.ReplaceAll(strings.TrimSpace(value), " ", ""))
			}
		}
	}
	return values
}

func words(doc *ast.CommentGroup) []string {
	values := stated(doc)
	var out []string
	for _, fact := range facts {
		found := append(values[fact.first], values[fact.second]...)
		if fact.fact == "default" {
			found = literal(found)
		}
		if fact.fact != "keys" && len(found) > 1 {
			found = found[:1] // One that is stated twice is stated twice the same.
		}
		if len(found) > 0 {
			out = append(out, fact.fact+"="+strings.Join(found, ","))
		}
	}
	return out
}

// literal leaves out defaults that name a constant of Go.
func literal(values []string) []string {
	var out []string
	for _, value := range values {
		if !strings.HasPrefix(value, "ref(") {
			out = append(out, value)
		}
	}
	return out
}
