package main

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	printers = "pkg/printers/internalversion/printers.go"
	features = "pkg/features/kube_features.go"
	suite    = "test/conformance/testdata/conformance.yaml"
)

// columns reads what upstream prints: lists of columns, and which list goes with which function, whose argument says the kind.
func (s *server) columns(tree string) ([]string, error) {
	file, err := parse(tree, printers)
	if err != nil {
		return nil, err
	}
	folders := map[string]string{}
	for _, imported := range file.Imports {
		path, err := strconv.Unquote(imported.Path.Value)
		if err != nil {
			return nil, err
		}
		if folder, ok := strings.CutPrefix(path, apis); ok {
			name := filepath.Base(folder)
			if imported.Name != nil {
				name = imported.Name.Name
			}
			folders[name] = folder
		}
	}
	lists, kinds := map[string][]map[string]string{}, map[string][2]string{}
	var handlers [][2]string
	ast.Inspect(file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.AssignStmt:
			name, isName := node.Lhs[0].(*ast.Ident)
			if isName && strings.HasSuffix(name.Name, "ColumnDefinitions") {
				// Some are made longer by `append`.
				ast.Inspect(node.Rhs[0], func(node ast.Node) bool {
					literal, ok := node.(*ast.CompositeLit)
					if column := fieldsOf(literal); ok && column["Name"] != "" {
						lists[name.Name] = append(lists[name.Name], column)
					}
					return true
				})
			}
		case *ast.CallExpr:
			call, isMethod := node.Fun.(*ast.SelectorExpr)
			if isMethod && call.Sel.Name == "TableHandler" && len(node.Args) == 2 {
				list, isList := node.Args[0].(*ast.Ident)
				function, isFunction := node.Args[1].(*ast.Ident)
				if isList && isFunction {
					handlers = append(handlers, [2]string{list.Name, function.Name})
				}
			}
		case *ast.FuncDecl:
			if parameters := node.Type.Params.List; len(parameters) > 0 {
				if pointer, ok := parameters[0].Type.(*ast.StarExpr); ok {
					if selector, ok := pointer.X.(*ast.SelectorExpr); ok {
						if alias, ok := selector.X.(*ast.Ident); ok {
							kinds[node.Name.Name] = [2]string{folders[alias.Name], selector.Sel.Name}
						}
					}
				}
			}
		}
		return true
	})
	var lines []string
	for _, handler := range handlers {
		kind := kinds[handler[1]]
		group, isServed := s.groupOf(kind[0], kind[1])
		if !isServed {
			continue
		}
		for at, column := range lists[handler[0]] {
			lines = append(lines, columnLine(group, kind[1], at, column))
		}
	}
	if len(lines) < 200 {
		return nil, fmt.Errorf("%s: only %d columns", printers, len(lines))
	}
	sort.Strings(lines)
	return lines, nil
}

func columnLine(group, kind string, at int, column map[string]string) string {
	priority := column["Priority"]
	if priority == "" {
		priority = "0"
	}
	name, _ := strconv.Unquote(column["Name"])
	columnType, _ := strconv.Unquote(column["Type"])
	line := fmt.Sprintf("column %s %s %02d %q type=%s priority=%s", group, kind, at, name, columnType, priority)
	if format, err := strconv.Unquote(column["Format"]); err == nil && format != "" {
		line += " format=" + format
	}
	return line
}

// groupOf is the group of a kind of which the types lie in a folder, if it is served.
func (s *server) groupOf(folder, kind string) (string, bool) {
	for _, gv := range s.gvs {
		of, _, _ := strings.Cut(folderOf(gv), "/")
		for _, resource := range s.byVersion[gv.String()].APIResources {
			if of == folder && resource.Kind == kind && !strings.Contains(resource.Name, "/") {
				if gv.Group == "" {
					return "core", true
				}
				return gv.Group, true
			}
		}
	}
	return "", false
}

// gates reads what upstream's features are: of several entries the last is that of this version.
func gates(tree string) ([]string, error) {
	found := map[string]string{}
	file, err := parse(tree, features)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(node ast.Node) bool {
		entry, ok := node.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		name := ""
		switch key := entry.Key.(type) {
		case *ast.Ident:
			name = key.Name
		case *ast.SelectorExpr:
			name = key.Sel.Name
		}
		specs, ok := entry.Value.(*ast.CompositeLit)
		if !ok || name == "" || len(specs.Elts) == 0 {
			return true
		}
		spec := fieldsOf(specs.Elts[len(specs.Elts)-1])
		if spec["Default"] == "" || spec["PreRelease"] == "" {
			return true
		}
		line := "gate " + name + " " + spec["PreRelease"] + " off"
		if spec["Default"] == "true" {
			line = "gate " + name + " " + spec["PreRelease"] + " on"
		}
		if spec["LockToDefault"] == "true" {
			line += " locked"
		}
		found[name] = line
		return true
	})
	if len(found) < 100 {
		return nil, fmt.Errorf("only %d gates in %v", len(found), features)
	}
	var lines []string
	for _, line := range found {
		lines = append(lines, line)
	}
	sort.Strings(lines)
	return lines, nil
}

// tests are those that a conformant cluster has to pass.
func tests(tree string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(tree, suite))
	if err != nil {
		return nil, err
	}
	var listed []struct {
		Codename string `json:"codename"`
	}
	if err := yaml.Unmarshal(text, &listed); err != nil {
		return nil, err
	}
	var lines []string
	for _, test := range listed {
		lines = append(lines, "test "+test.Codename)
	}
	sort.Strings(lines)
	return lines, nil
}
