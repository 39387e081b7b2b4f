package runed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"
	runed "runed.dev/clients/go"
	runedv1 "runed.dev/gen/go/runed/v1"
)

func TestAKilledDaemonIsStartedAgainOnce(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			before := must(client.Embed(t.Context(), "green tea"))(t)
			killed := killDaemon(t, client)
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					after, err := client.Embed(t.Context(), "green tea")
					if err != nil {
						t.Error(err)
					} else if !(cosine(before.Vector, after.Vector) > 0.9999) {
						t.Error("the vector is another one")
					}
				})
			}
			callers.Wait()
			health := must(client.Health(t.Context()))(t)
			if health.GetPid() == killed {
				t.Errorf("pid %d after %d", health.GetPid(), killed)
			}
		})
	}
}

func TestAStoppedDaemonIsStartedAgain(t *testing.T) {
	client := connect(t)
	pid := must(client.Health(t.Context()))(t).GetPid()
	if output, err := exec.Command("runed", "stop").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	must(client.Embed(t.Context(), "green tea"))(t)
	if now := must(client.Health(t.Context()))(t).GetPid(); now == pid {
		t.Error("it was not stopped")
	}
}

func TestTheDaemonGetsTheCollectorOfTheApplicationAndNotItsName(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
	t.Setenv("OTEL_SERVICE_NAME", "shop")
	client := connect(t)
	if output, err := exec.Command("runed", "stop").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	must(client.Embed(t.Context(), "green tea"))(t)
	pid := must(client.Health(t.Context()))(t).GetPid()
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Skip(err) // only Linux shows it
	}
	if text := string(environment); !strings.Contains(text, "OTLP_ENDPOINT=http://127.0.0.1:9") || strings.Contains(text, "shop") {
		t.Error(strings.ReplaceAll(text, "\x00", "\n"))
	}
	if output, err := exec.Command("runed", "stop").CombinedOutput(); err != nil { // the next test has another environment
		t.Fatalf("%v: %s", err, output)
	}
}

func TestTheGeneratedClientStartsTheDaemon(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			must(client.WaitReady(t.Context()))(t)
			service := client.Service()
			embed := func() ([]float32, error) {
				response, err := service.Embed(t.Context(), connectrpc.NewRequest(&runedv1.EmbedRequest{Text: "green tea"}))
				if err != nil {
					return nil, err
				}
				return response.Msg.GetVector(), nil
			}
			before := must(embed())(t)
			pid := must(client.Health(t.Context()))(t).GetPid()
			if output, err := exec.Command("runed", "stop").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, output)
			}
			after, err := embed()
			if connectrpc.CodeOf(err) == connectrpc.CodeFailedPrecondition { // it sends each call once, so a start may be in its way
				must(client.WaitReady(t.Context()))(t)
				after, err = embed()
			}
			if err != nil || !(cosine(before, after) > 0.9999) {
				t.Error(err)
			}
			if now := must(client.Health(t.Context()))(t).GetPid(); now == pid {
				t.Error("it was not stopped")
			}
			stream := service.EmbedStream(t.Context())
			sent := &runedv1.EmbedStreamRequest{Items: []*runedv1.EmbedStreamItem{{Id: "a", Text: "green tea"}}}
			if err := errors.Join(stream.Send(sent), stream.CloseRequest()); err != nil {
				t.Error(err)
			}
			if answer, err := stream.Receive(); err != nil || answer.GetResults()[0].GetId() != "a" {
				t.Error(answer, err)
			}
			stream.CloseResponse()
			client.Close()
			if _, err := embed(); !errors.Is(err, runed.ErrClosed) {
				t.Error(err)
			}
		})
	}
}

func TestAStreamOutlivesItsDaemon(t *testing.T) {
	const count = 1500
	for name, end := range map[string]func(*testing.T, *runed.Client){
		"killed":  func(t *testing.T, client *runed.Client) { killDaemon(t, client) },
		"stopped": func(t *testing.T, client *runed.Client) { client.Shutdown(context.Background(), time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			client := connect(t)
			seen := map[string]int{}
			var taken atomic.Int64
			for item, err := range client.EmbedStream(t.Context(), numbered(count, &taken)) {
				if err != nil {
					t.Fatal(err)
				}
				seen[item.ID]++
				if len(seen) == 200 {
					end(t, client)
				}
			}
			for id, times := range seen {
				if times != 1 {
					t.Errorf("text %s: %d outcomes", id, times)
				}
			}
			if len(seen) != count {
				t.Errorf("%d of %d texts", len(seen), count)
			}
		})
	}
}

func TestOneThatMayNotSpawnSaysWhatToDo(t *testing.T) {
	home := ownHome(t)
	socket := filepath.Join(home, "embedding.sock")
	for name, option := range map[string]runed.Option{"home": runed.WithHome(home), "socket": runed.WithSocket(socket)} {
		_, err := runed.Connect(t.Context(), option, runed.WithoutSpawn())
		if !errors.Is(err, runed.ErrDaemonUnavailable) || !strings.Contains(err.Error(), "runed ensure") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := runed.Connect(t.Context(), runed.WithHome(home), runed.WithSocket(socket)); !errors.Is(err, runed.ErrBadSetting) {
		t.Error(err)
	}
	if _, err := runed.Connect(t.Context(), runed.WithHome(home), runed.WithProtocol("smtp")); !errors.Is(err, runed.ErrBadSetting) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(home, "daemon.json")); err == nil {
		t.Error("a daemon was started")
	}
	// One that ran, and went away.
	spawning := connect(t)
	must(spawning.Health(t.Context()))(t) // a daemon that the last test has just killed still takes connections
	client := connect(t, runed.WithoutSpawn())
	pid := killDaemon(t, client)
	waitUntil(t, "its end", func() bool { return processGone(pid) })
	if _, err := client.Health(t.Context()); !errors.Is(err, runed.ErrDaemonUnavailable) {
		t.Error(err)
	}
	must(spawning.Health(t.Context()))(t)
	must(client.Health(t.Context()))(t)
}

func TestALongHomeHasAShortSocket(t *testing.T) {
	home := filepath.Join(ownHome(t), strings.Repeat("long", 30))
	t.Cleanup(func() { removeHome(home) })
	client := connect(t, runed.WithHome(home))
	must(client.Embed(t.Context(), "green tea"))(t)
	path := must(client.Info(t.Context()))(t).GetSocketPath()
	if !strings.HasPrefix(path, fmt.Sprintf("/tmp/runed-%d/runed-", os.Getuid())) {
		t.Error(path)
	}
}

// asRuned makes a home whose `runed` is a shell script.
func asRuned(t *testing.T, script string) (home string) {
	t.Helper()
	home = ownHome(t)
	program := filepath.Join(home, "my-runed")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"version": 1, "runed_binary": %q}`, program)
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

func TestADaemonThatCannotBeStartedSaysWhy(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		reason runed.Reason
		told   string
	}{
		"an error":     {`echo '{"error": {"reason": "BAD_SETTING", "message": "no such model"}}'; exit 2`, runed.ErrBadSetting, "no such model"},
		"a crash":      {`echo first >&2; echo no such luck >&2; exit 5`, runed.ErrDaemonStartFailed, "exit status 5: no such luck"},
		"garbage":      {`echo hello`, runed.ErrDaemonStartFailed, "another program's"},
		"other home":   {`echo '{"socket": "/elsewhere/embedding.sock", "started": true}'`, runed.ErrDaemonStartFailed, "/elsewhere/embedding.sock"},
		"arguments":    {`echo "$* for $RUNED_HOME" >&2; exit 1`, runed.ErrDaemonStartFailed, "ensure --json for /tmp/rg-"},
		"kept stopped": {`echo '{"error": {"reason": "KEPT_STOPPED", "message": "until 14:05"}}'; exit 1`, runed.ErrKeptStopped, "until 14:05"},
		"no execution": {`kill -9 $$`, runed.ErrDaemonStartFailed, "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := runed.Connect(t.Context(), runed.WithHome(asRuned(t, test.script)))
			if !errors.Is(err, test.reason) || !strings.Contains(err.Error(), test.told) {
				t.Error(err)
			}
		})
	}
}

func TestWithoutAProgramTheErrorSaysHowToGetOne(t *testing.T) {
	home := ownHome(t)
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	_, err := runed.Connect(t.Context(), runed.WithHome(home))
	if !errors.Is(err, runed.ErrDaemonStartFailed) || !strings.Contains(err.Error(), "pip install runed") {
		t.Error(err)
	}
	// The one that `runed install` left in the home comes last.
	if err := os.MkdirAll(filepath.Join(home, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "bin", "runed"), []byte("#!/bin/sh\necho from the home >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := runed.Connect(t.Context(), runed.WithHome(home)); !strings.Contains(err.Error(), "from the home") {
		t.Error(err)
	}
	t.Setenv("PATH", path) // for the clean-up
}

func TestAStartThatHangsEndsSoonAfterItsLimit(t *testing.T) {
	home := asRuned(t, `trap '' TERM; sleep 8 & while :; do sleep 0.05; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := runed.Connect(ctx, runed.WithHome(home)); !errors.Is(err, runed.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the call with a limit of 0.5 s took %v", took)
	}
}

func TestAStartEndsWithItsContext(t *testing.T) {
	home := asRuned(t, `trap 'echo ended > "$RUNED_HOME/ended"; exit 1' TERM; echo > "$RUNED_HOME/began"; while :; do sleep 0.05; done`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := runed.Connect(ctx, runed.WithHome(home))
		done <- err
	}()
	waitUntil(t, "the start", func() bool { _, err := os.Stat(filepath.Join(home, "began")); return err == nil })
	cancel()
	if err := <-done; !errors.Is(err, runed.ErrCanceled) {
		t.Error(err)
	}
	must(os.Stat(filepath.Join(home, "ended")))(t)
}
