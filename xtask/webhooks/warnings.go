package main

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"

	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/warning"
)

// warned is what is warned of in one request, and the headers that come of it.
type warned struct {
	Texts   []string `json:"texts"`
	Headers []string `json:"headers"`
}

func warningsTable() []warned {
	random := rand.New(rand.NewPCG(36, 4))
	var table []warned
	for range 300 {
		line := warned{Texts: []string{}}
		for range random.IntN(40) {
			length := []int{0, 1, 5, 60, 255, 256, 257, 1000, 4095, 4096, 4097}[random.IntN(11)]
			letter := []string{"a", "b", "é", "世", "\"", "\\", "\t", " "}[random.IntN(8)]
			if length > 300 && random.IntN(3) > 0 {
				length = 7
			}
			line.Texts = append(line.Texts, strings.Repeat(letter, length))
		}
		recorder := httptest.NewRecorder()
		handler := filters.WithWarningRecorder(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
			for _, text := range line.Texts {
				warning.AddWarning(request.Context(), "", text)
			}
		}))
		handler.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
		line.Headers = append([]string{}, recorder.Header()["Warning"]...)
		table = append(table, line)
	}
	return table
}
