package main

func admissions(w *world) ([]int, error) { return nil, nil }
func rulesTable() []int { return nil }
