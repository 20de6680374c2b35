package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// priority is where a group stands among groups, and a version among those of its group.
type priority struct{ group, version string }

// What only kube-apiserver itself says is read from its sources: to compile it takes as long as all the rest.
const (
	instance = "pkg/controlplane/instance.go"
	// Lists of versions that are on are called so.
	enabledByDefault = "EnabledByDefault"
	apis             = "k8s.io/kubernetes/pkg/apis/"
)

var aggregators = []string{"pkg/controlplane/apiserver/aggregator.go", "cmd/kube-apiserver/app/aggregator.go"}

func parse(tree, path string) (*ast.File, error) {
	return parser.ParseFile(token.NewFileSet(), filepath.Join(tree, path), nil, 0)
}

// readEnabled reads the groups and versions that are served by default, by their folders in k8s.io/api: `apps/v1`.
func readEnabled(tree string) (map[string]bool, error) {
	file, err := parse(tree, instance)
	if err != nil {
		return nil, err
	}
	folders := map[string]string{}
	for _, imported := range file.Imports {
		path, err := strconv.Unquote(imported.Path.Value)
		if err != nil {
			return nil, err
		}
		for _, prefix := range []string{"k8s.io/api/", apis} {
			if folder, ok := strings.CutPrefix(path, prefix); ok && imported.Name != nil {
				folders[imported.Name.Name] = folder
			}
		}
	}
	enabled := map[string]bool{}
	ast.Inspect(file, func(node ast.Node) bool {
		value, ok := node.(*ast.ValueSpec)
		if !ok || !strings.HasSuffix(value.Names[0].Name, enabledByDefault) || len(value.Values) != 1 {
			return true
		}
		list, ok := value.Values[0].(*ast.CompositeLit)
		if !ok {
			return true
		}
		for _, element := range list.Elts {
			if selector, ok := element.(*ast.SelectorExpr); ok {
				if name, ok := selector.X.(*ast.Ident); ok {
					enabled[folders[name.Name]] = true
				}
			}
		}
		return true
	})
	if len(enabled) < 20 {
		return nil, fmt.Errorf("%s: only %d versions are served by default", instance, len(enabled))
	}
	return enabled, nil
}

// folderOf is where the types of a group and version lie in k8s.io/api.
func folderOf(gv schema.GroupVersion) string {
	folder, _, _ := strings.Cut(gv.Group, ".")
	if folder == "" {
		folder = "core"
	}
	return folder + "/" + gv.Version
}

// readPriorities reads maps of `{Group: "apps", Version: "v1"}: {Group: 17800, Version: 15}`.
func readPriorities(tree string) (map[schema.GroupVersion]priority, error) {
	found := map[schema.GroupVersion]priority{}
	for _, path := range aggregators {
		file, err := parse(tree, path)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			entry, ok := node.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			key, value := fieldsOf(entry.Key), fieldsOf(entry.Value)
			group, err := strconv.Unquote(key["Group"])
			if version, failed := strconv.Unquote(key["Version"]); err == nil && failed == nil {
				found[schema.GroupVersion{Group: group, Version: version}] = priority{value["Group"], value["Version"]}
			}
			return true
		})
	}
	if len(found) < 20 {
		return nil, fmt.Errorf("only %d priorities in %v", len(found), aggregators)
	}
	return found, nil
}

// fieldsOf are the literals of a struct, by field.
func fieldsOf(expression ast.Expr) map[string]string {
	fields := map[string]string{}
	literal, ok := expression.(*ast.CompositeLit)
	if !ok || literal == nil {
		return fields
	}
	for _, element := range literal.Elts {
		entry, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		name, isName := entry.Key.(*ast.Ident)
		if !isName {
			continue
		}
		switch value := entry.Value.(type) {
		case *ast.BasicLit:
			fields[name.Name] = value.Value
		case *ast.Ident:
			fields[name.Name] = value.Name
		case *ast.SelectorExpr:
			fields[name.Name] = value.Sel.Name
		}
	}
	return fields
}

// aggregated are resources in the form of aggregated discovery: subresources lie below what they are part of.
func aggregated(resources []metav1.APIResource) []apidiscoveryv2.APIResourceDiscovery {
	var found []apidiscoveryv2.APIResourceDiscovery
	at := map[string]int{}
	for _, resource := range resources {
		kind := &metav1.GroupVersionKind{Group: resource.Group, Version: resource.Version, Kind: resource.Kind}
		name, part, isPart := strings.Cut(resource.Name, "/")
		if i, ok := at[name]; isPart && ok {
			found[i].Subresources = append(found[i].Subresources, apidiscoveryv2.APISubresourceDiscovery{
				Subresource: part, ResponseKind: kind, Verbs: resource.Verbs,
			})
			continue
		}
		scope := apidiscoveryv2.ScopeCluster
		if resource.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		at[name] = len(found)
		found = append(found, apidiscoveryv2.APIResourceDiscovery{
			Resource: resource.Name, ResponseKind: kind, Scope: scope, SingularResource: resource.SingularName,
			Verbs: resource.Verbs, ShortNames: resource.ShortNames, Categories: resource.Categories,
		})
	}
	return found
}
