// The receiver of the collector of OpenTelemetry. Each request becomes a line on standard output: "traces " or "metrics ", and what
// came, as JSON. The first line is the address that listens.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	address := listener.Addr().String()
	check(listener.Close()) // the receiver listens itself
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	http := map[string]any{"endpoint": address}
	check(confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{"http": http}}).Unmarshal(config))
	var lock sync.Mutex
	write := func(kind string, line []byte, err error) error {
		lock.Lock()
		defer lock.Unlock()
		if err == nil {
			fmt.Printf("%s %s\n", kind, line)
		}
		return err
	}
	traces, err := consumer.NewTraces(func(_ context.Context, data ptrace.Traces) error {
		line, err := (&ptrace.JSONMarshaler{}).MarshalTraces(data)
		return write("traces", line, err)
	})
	check(err)
	metrics, err := consumer.NewMetrics(func(_ context.Context, data pmetric.Metrics) error {
		line, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(data)
		return write("metrics", line, err)
	})
	check(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	settings := receivertest.NewNopSettings(factory.Type())
	first, err := factory.CreateTraces(ctx, settings, config, traces)
	check(err)
	second, err := factory.CreateMetrics(ctx, settings, config, metrics)
	check(err)
	check(first.Start(ctx, componenttest.NewNopHost()))
	check(second.Start(ctx, componenttest.NewNopHost()))
	fmt.Println(address)
	<-ctx.Done()
	check(second.Shutdown(context.Background()))
	check(first.Shutdown(context.Background()))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
