// Command policies runs upstream's plug-in of admission policies over policies and requests of our own, and records what it
// says. `policy/tests` replays that.
//
//	policies DIRECTORY     writes validate.jsonl.gz, mutate.jsonl.gz and types.jsonl.gz there
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"
)

func main() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: policies DIRECTORY")
	}
	judged := append(handMade(), seeded()...)
	for i := range judged {
		if err := judged[i].judge(); err != nil {
			return fmt.Errorf("%s: %w", judged[i].Name, err)
		}
	}
	if err := write(filepath.Join(args[0], "validate.jsonl.gz"), judged); err != nil {
		return err
	}
	converters, err := newConverters()
	if err != nil {
		return err
	}
	mutated := mutations()
	for i := range mutated {
		if err := mutated[i].mutate(converters); err != nil {
			return fmt.Errorf("%s: %w", mutated[i].Name, err)
		}
	}
	if err := write(filepath.Join(args[0], "mutate.jsonl.gz"), mutated); err != nil {
		return err
	}
	checked := types()
	for i := range checked {
		if err := check(&checked[i]); err != nil {
			return fmt.Errorf("%s: %w", checked[i].Name, err)
		}
	}
	return write(filepath.Join(args[0], "types.jsonl.gz"), checked)
}

// write makes a packed file of lines.
func write[T any](path string, lines []T) error {
	var packed bytes.Buffer
	writer, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(writer)
	encoder.SetEscapeHTML(false)
	for _, line := range lines {
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, packed.Bytes(), 0o644)
}
