package runed_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runed "runed.dev/clients/go"
)

func Example() {
	ctx := context.Background()
	client, err := runed.Connect(ctx) // starts the daemon if none runs
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	documents := []string{"Green tea is steeped at 80 degrees.", "The night train leaves at ten."}
	embeddings, err := client.EmbedBatch(ctx, documents, runed.WithRole(runed.RoleDocument))
	if err != nil {
		log.Fatal(err)
	}
	query, err := client.Embed(ctx, "When does it depart?", runed.WithRole(runed.RoleQuery))
	if err != nil {
		log.Fatal(err)
	}
	for i, embedding := range embeddings {
		similarity := float32(0)
		for j, value := range query.Vector {
			similarity += value * embedding.Vector[j]
		}
		fmt.Printf("%.1f %s\n", similarity, documents[i])
	}

	texts := maps.All(map[string]string{"a": "oolong", "b": ""}) // or any other pairs of id and text
	for item, err := range client.EmbedStream(ctx, texts) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(item.ID, len(item.Vector), errors.Is(item.Err, runed.ErrEmptyText))
	}
	// Unordered output:
	// 0.0 Green tea is steeped at 80 degrees.
	// 0.4 The night train leaves at ten.
	// a 384 false
	// b 0 true
}

// The body of Example is also what the documents show.
func TestDocumentsShowTheExample(t *testing.T) {
	source := string(must(os.ReadFile("example_test.go"))(t))
	_, body, _ := strings.Cut(source, "func Example() {\n")
	body, _, found := strings.Cut(body, "\t// Unordered output:\n")
	if !found {
		t.Fatal("there is no Example")
	}
	shown := "```go\n" + strings.TrimPrefix(strings.ReplaceAll("\n"+body, "\n\t", "\n"), "\n") + "```\n"
	for _, path := range []string{"README.md", filepath.Join("..", "..", "docs", "clients.md")} {
		if document := string(must(os.ReadFile(path))(t)); !strings.Contains(document, shown) {
			t.Errorf("%s does not show what Example does; it should have\n%s", path, shown)
		}
	}
}
