package main

import (
	"os"
	"path/filepath"
	"strings"
)

// writeReference writes facts.txt and discovery.jsonl.gz: what upstream's API server is with its default settings, by the documents
// and the sources that its module ships. Nothing of the server is compiled, as that takes longer than all the rest.
//
// A line of facts.txt is a fact; its first word says of what:
//
//	version VERSION
//	serves GROUP/VERSION group=PRIORITY version=PRIORITY        what is served by default, as discovery orders it
//	resource GROUP/VERSION NAME KIND SCOPE [short=…] [categories=…] [parts=…]
//	column GROUP KIND PLACE NAME type=… priority=… [format=…]
//	gate NAME STAGE on|off [locked]
//	test NAME                                                   of the conformance suite
func writeReference(tree, version, directory string) error {
	served, err := readServer(tree)
	if err != nil {
		return err
	}
	facts := []string{"version " + version}
	facts = append(facts, served.groups()...)
	facts = append(facts, served.resources()...)
	for _, section := range []func(string) ([]string, error){served.columns, gates, tests} {
		lines, err := section(tree)
		if err != nil {
			return err
		}
		facts = append(facts, lines...)
	}
	text := strings.Join(facts, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(directory, "facts.txt"), []byte(text), 0o644); err != nil {
		return err
	}
	return served.write(filepath.Join(directory, "discovery.jsonl.gz"))
}
