// Command codegen tells what only upstream's own Go types know, and makes golden bytes with upstream's own
// encoder.
//
//	codegen schema OPENAPI FACTS FILE    shape, field numbers, presence and markers of every field; OPENAPI says what is
//	                                     required, FACTS, of the reference, which features are off
//	codegen reference TREE VERSION FOLDER    what upstream's API server is by default, of the tree of its sources
//	codegen corpus FILE                  objects of every kind as JSON and as protobuf, gzipped lines
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "schema":
		return writeSchema(args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "reference":
		return writeReference(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "corpus":
		return writeCorpus(args[1])
	}
	return fmt.Errorf("usage: codegen schema OPENAPI FACTS FILE | reference TREE VERSION FOLDER | corpus FILE")
}
