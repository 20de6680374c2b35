// Command upstream tells what only upstream's own Go types know, and makes golden bytes with upstream's own
// encoder.
//
//	upstream facts          shape, field numbers and presence of every field, for the schema generator
//	upstream corpus FILE    objects of every kind as JSON and as protobuf, gzipped lines
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
	case len(args) == 1 && args[0] == "facts":
		return writeFacts(os.Stdout)
	case len(args) == 2 && args[0] == "corpus":
		return writeCorpus(args[1])
	}
	return fmt.Errorf("usage: upstream facts | corpus FILE")
}
