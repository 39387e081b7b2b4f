package runed_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	connectrpc "connectrpc.com/connect"
	runed "runed.dev/clients/go"
	runedv1 "runed.dev/gen/go/runed/v1"
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

func ExampleClient_Service() {
	ctx := context.Background()
	client, err := runed.Connect(ctx) // starts the daemon if none runs
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	service := client.Service() // the generated runedv1connect.RunedServiceClient
	request := connectrpc.NewRequest(&runedv1.EmbedRequest{Text: "green tea", Role: runedv1.Role_ROLE_DOCUMENT})
	response, err := service.Embed(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(response.Msg.Vector), response.Msg.TokenCount)
	// Output: 384 4
}

// The bodies of the examples are also what the documents show.
func TestDocumentsShowTheExamples(t *testing.T) {
	source := string(must(os.ReadFile("example_test.go"))(t))
	clients := filepath.Join("..", "..", "docs", "clients.md")
	for _, example := range []struct {
		name, end string
		documents []string
	}{
		{"Example", "\t// Unordered output:\n", []string{"README.md", clients}},
		{"ExampleClient_Service", "\t// Output:", []string{clients}},
	} {
		_, body, _ := strings.Cut(source, "func "+example.name+"() {\n")
		body, _, found := strings.Cut(body, example.end)
		if !found {
			t.Fatalf("there is no %s", example.name)
		}
		shown := "```go\n" + strings.TrimPrefix(strings.ReplaceAll("\n"+body, "\n\t", "\n"), "\n") + "```\n"
		for _, path := range example.documents {
			if document := string(must(os.ReadFile(path))(t)); !strings.Contains(document, shown) {
				t.Errorf("%s does not show what %s does; it should have\n%s", path, example.name, shown)
			}
		}
	}
}

// The program of docs/rag.md works, and stands there.
func TestRagProgram(t *testing.T) {
	page := string(must(os.ReadFile(filepath.Join("..", "..", "docs", "rag.md")))(t))
	source := string(must(os.ReadFile("testdata/rag/main.go"))(t))
	if !strings.Contains(page, "```go\n"+source+"```\n") {
		t.Error("docs/rag.md differs from testdata/rag/main.go")
	}
	command := exec.Command("go", "run", "./testdata/rag", "testdata/notes", "How hot is the water for green tea?")
	output := string(must(command.Output())(t))
	if !strings.HasPrefix(output, "Answer from these passages: How hot is the water for green tea?\n\nGreen tea is steeped at 80 degrees.\n\n") {
		t.Error(output)
	}
}
