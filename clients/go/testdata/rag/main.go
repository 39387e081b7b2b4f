package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"

	runed "runed.dev/clients/go"
)

type passage struct {
	text  string
	score float32
}

func main() {
	ctx, folder, question := context.Background(), os.Args[1], os.Args[2]
	var texts []string
	err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			texts = append(texts, strings.Split(string(must(os.ReadFile(path))), "\n\n")...)
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	texts = slices.DeleteFunc(texts, func(text string) bool { return strings.TrimSpace(text) == "" })

	client := must(runed.Connect(ctx)) // starts the daemon if none runs
	documents := must(client.EmbedBatch(ctx, texts, runed.WithRole(runed.RoleDocument), runed.WithTruncate(runed.TruncateEnd)))
	query := must(client.Embed(ctx, question, runed.WithRole(runed.RoleQuery)))
	passages := make([]passage, len(texts))
	for i, document := range documents {
		passages[i].text = strings.TrimSpace(texts[i])
		for j, value := range query.Vector {
			passages[i].score += value * document.Vector[j]
		}
	}
	slices.SortFunc(passages, func(a, b passage) int { return cmp.Compare(b.score, a.score) })
	fmt.Println("Answer from these passages:", question)
	for _, found := range passages[:min(3, len(passages))] {
		fmt.Printf("\n%s\n", found.text)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
