package interop

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pb "runed.dev/interop/runedv1"
)

// gate is a file on a web server. It comes in small pieces until the gate is opened.
type gate struct {
	data   []byte
	opened chan struct{}
}

func (g *gate) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	response.Header().Set("Content-Length", fmt.Sprint(len(g.data)))
	drops := time.NewTicker(20 * time.Millisecond)
	defer drops.Stop()
	sent := 0
	for {
		select {
		case <-g.opened:
			response.Write(g.data[sent:])
			return
		case <-request.Context().Done():
			return
		case <-drops.C:
			drop := (len(g.data) - sent) / 100
			response.Write(g.data[sent : sent+drop])
			http.NewResponseController(response).Flush()
			sent += drop
		}
	}
}

func (g *gate) described(url string) map[string]any {
	sum := sha256.Sum256(g.data)
	return map[string]any{"url": url, "sha256": hex.EncodeToString(sum[:]), "size": len(g.data)}
}

// TestPhasesOfABootstrap lets a daemon fetch an engine, a script around the real one, and the model, from a slow server.
func TestPhasesOfABootstrap(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	release := filepath.Join(folder, "release")
	// The script waits for a file before it loads the model. It answers `--version` and the like at once.
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *.gguf*) while [ ! -e %q ]; do sleep 0.02; done;; esac\nexec %q \"$@\"\n",
		release, os.Getenv("RUNED_LLAMA_SERVER"))
	engine := &gate{append([]byte(script), bytes.Repeat([]byte("# room for many drops\n"), 10_000)...), make(chan struct{})}
	model := &gate{must(os.ReadFile(os.Getenv("RUNED_MODEL")))(t), make(chan struct{})}
	routes := http.NewServeMux()
	routes.Handle("/engine", engine)
	routes.Handle("/model.gguf", model)
	server := httptest.NewServer(routes)
	defer server.Close()

	program := engine.described(server.URL + "/engine")
	program["extract"], program["exec"] = "", "llama-server"
	manifest := must(json.Marshal(map[string]any{
		"version":       1,
		"platforms":     map[string]any{runtime.GOOS + "-" + runtime.GOARCH: map[string]any{"llama_server": program}},
		"models":        map[string]any{"slow": model.described(server.URL + "/model.gguf")},
		"default_model": "slow",
	}))(t)
	path := filepath.Join(folder, "manifest.json")
	if err := os.WriteFile(path, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	h := must(makeHome("RUNED_MANIFEST="+path, "RUNED_LLAMA_SERVER=", "RUNED_MODEL="))(t)
	t.Cleanup(h.remove)
	if err := h.ensure(); err != nil {
		t.Fatal(err)
	}
	client := dial(t, h)

	wantLoading(t, client, pb.HealthResponse_PHASE_FETCHING_LLAMA_SERVER, engine)
	close(engine.opened)
	wantLoading(t, client, pb.HealthResponse_PHASE_FETCHING_MODEL, model)
	close(model.opened)

	// The call waits for an engine that starts.
	waitFor(t, client, func(health *pb.HealthResponse) bool {
		return health.GetStatus() == pb.HealthResponse_STATUS_LOADING && health.GetPhase() == pb.HealthResponse_PHASE_STARTING_LLAMA_SERVER
	})
	done := make(chan error)
	go func() {
		_, err := client.Embed(t.Context(), &pb.EmbedRequest{Text: "green tea"})
		done <- err
	}()
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	waitReady(t, client)
}

// wantLoading waits for a phase and the bytes of its file, and checks that an embedding is refused.
func wantLoading(t *testing.T, client pb.RunedServiceClient, phase pb.HealthResponse_Phase, file *gate) {
	t.Helper()
	waitFor(t, client, func(health *pb.HealthResponse) bool {
		if health.GetStatus() != pb.HealthResponse_STATUS_LOADING || health.GetPhase() != phase {
			return false
		}
		return health.GetBytesDone() > 0 && health.GetBytesTotal() == int64(len(file.data))
	})
	_, err := client.Embed(t.Context(), &pb.EmbedRequest{Text: "too early"})
	wantRefusal(t, err, codes.FailedPrecondition, "BOOTSTRAPPING")
	if info := must(client.Info(t.Context(), &pb.InfoRequest{}))(t); info.GetDaemonVersion() == "" {
		t.Error(info)
	}
}
