package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// server is what is served by default: of all that the module's documents of discovery list, the versions that are on.
type server struct {
	lists      []apidiscoveryv2.APIGroupDiscoveryList
	groupList  metav1.APIGroupList
	versions   metav1.APIVersions
	byVersion  map[string]metav1.APIResourceList
	gvs        []schema.GroupVersion
	priorities map[schema.GroupVersion]priority
}

// gated is what the documents have of a version that is on, because they are of a server with all features. Its gate is off.
const gated = "csinodes/status"

// own are served by other servers of the same program, which have no such configuration.
var own = map[string]bool{"apiregistration.k8s.io/v1": true, "apiextensions.k8s.io/v1": true}

// address is where the server of the tests says that it is. The documents have that of whoever made them.
const address = "192.0.2.1:6443"

func readServer(tree string) (*server, error) {
	enabled, err := readEnabled(tree)
	if err != nil {
		return nil, err
	}
	isOn := func(gv schema.GroupVersion) bool { return own[gv.String()] || enabled[folderOf(gv)] }
	folder := filepath.Join(tree, "api/discovery")
	s := &server{byVersion: map[string]metav1.APIResourceList{}}
	if s.priorities, err = readPriorities(tree); err != nil {
		return nil, err
	}
	var core, groups apidiscoveryv2.APIGroupDiscoveryList
	if err := read(filepath.Join(folder, "aggregated_v2.json"), &groups); err != nil {
		return nil, err
	}
	if err := read(filepath.Join(folder, "api.json"), &s.versions); err != nil {
		return nil, err
	}
	for i := range s.versions.ServerAddressByClientCIDRs {
		s.versions.ServerAddressByClientCIDRs[i].ServerAddress = address
	}
	if err := read(filepath.Join(folder, "apis.json"), &s.groupList); err != nil {
		return nil, err
	}
	keep := groups.Items[:0]
	for _, group := range groups.Items {
		on := group.Versions[:0]
		for _, version := range group.Versions {
			for i := range version.Resources {
				parts := version.Resources[i].Subresources
				version.Resources[i].Subresources = slices.DeleteFunc(parts, func(part apidiscoveryv2.APISubresourceDiscovery) bool {
					return version.Resources[i].Resource+"/"+part.Subresource == gated
				})
			}
			if gv := (schema.GroupVersion{Group: group.Name, Version: version.Version}); isOn(gv) {
				on = append(on, version)
				s.gvs = append(s.gvs, gv)
			}
		}
		group.Versions = on
		if len(on) > 0 {
			keep = append(keep, group)
		}
	}
	groups.Items = keep
	s.lists = []apidiscoveryv2.APIGroupDiscoveryList{core, groups}
	kept := s.groupList.Groups[:0]
	for _, group := range s.groupList.Groups {
		on := group.Versions[:0]
		for _, version := range group.Versions {
			if isOn(schema.GroupVersion{Group: group.Name, Version: version.Version}) {
				on = append(on, version)
			}
		}
		group.Versions = on
		if len(on) > 0 {
			kept = append(kept, group)
		}
	}
	s.groupList.Groups = kept
	s.gvs = append([]schema.GroupVersion{{Version: "v1"}}, s.gvs...)
	for _, gv := range s.gvs {
		var list metav1.APIResourceList
		if err := read(filepath.Join(folder, file(gv)), &list); err != nil {
			return nil, err
		}
		list.APIResources = slices.DeleteFunc(list.APIResources, func(resource metav1.APIResource) bool {
			return resource.Name == gated
		})
		s.byVersion[gv.String()] = list
	}
	// The module has no such document of the group without a name.
	resources := aggregated(s.byVersion["v1"].APIResources)
	version := apidiscoveryv2.APIVersionDiscovery{
		Version: "v1", Resources: resources, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
	}
	s.lists[0].TypeMeta = groups.TypeMeta
	s.lists[0].Items = []apidiscoveryv2.APIGroupDiscovery{{Versions: []apidiscoveryv2.APIVersionDiscovery{version}}}
	return s, nil
}

func file(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api__" + gv.Version + ".json"
	}
	return "apis__" + gv.Group + "__" + gv.Version + ".json"
}

func read(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// write writes the documents as the server answers them: path and body.
func (s *server) write(path string) error {
	documents := map[string]any{"/api#aggregated": s.lists[0], "/apis#aggregated": s.lists[1], "/api": s.versions, "/apis": s.groupList}
	for gv, list := range s.byVersion {
		prefix := "/apis/"
		if !strings.Contains(gv, "/") {
			prefix = "/api/"
		}
		documents[prefix+gv] = list
	}
	paths := make([]string, 0, len(documents))
	for path := range documents {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	var lines []byte
	for _, path := range paths {
		body, err := json.Marshal(documents[path])
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		line, err := json.Marshal(struct {
			Path string `json:"path"`
			Body string `json:"body"`
		}{path, string(body)})
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
	}
	return pack(path, lines)
}

func pack(path string, text []byte) error {
	var packed bytes.Buffer
	writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(text); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, packed.Bytes(), 0o644)
}

func (s *server) groups() []string {
	var lines []string
	for _, gv := range s.gvs {
		line := "serves " + gv.String()
		if at, ok := s.priorities[gv]; ok {
			line += fmt.Sprintf(" group=%s version=%s", at.group, at.version)
		}
		lines = append(lines, line)
	}
	return lines
}

func (s *server) resources() []string {
	var lines []string
	for _, gv := range s.gvs {
		list := s.byVersion[gv.String()].APIResources
		parts := map[string][]string{}
		for _, resource := range list {
			if name, part, ok := strings.Cut(resource.Name, "/"); ok {
				parts[name] = append(parts[name], part)
			}
		}
		for _, resource := range list {
			if strings.Contains(resource.Name, "/") {
				continue
			}
			scope := "Cluster"
			if resource.Namespaced {
				scope = "Namespaced"
			}
			line := fmt.Sprintf("resource %s %s %s %s", gv, resource.Name, resource.Kind, scope)
			for _, list := range []struct {
				name  string
				words []string
			}{{"short", resource.ShortNames}, {"categories", resource.Categories}, {"parts", parts[resource.Name]}} {
				if len(list.words) > 0 {
					line += " " + list.name + "=" + strings.Join(list.words, ",")
				}
			}
			lines = append(lines, line)
		}
	}
	return lines
}
