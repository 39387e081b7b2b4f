// Command conformance is the Go driver of tests/conformance: calls come as JSON lines on the standard input, results go as such
// to the standard output.
//
//	conformance (--socket PATH | --connect) [--protocol connect|grpc|grpcweb]
//
// With --connect it finds or starts the daemon as every client does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runed "runed.dev/clients/go"
)

func main() {
	socket := flag.String("socket", "", "the daemon's `socket`")
	find := flag.Bool("connect", false, "find or start the daemon")
	protocol := flag.String("protocol", string(runed.ProtocolConnect), "connect, grpc or grpcweb")
	flag.Parse()
	if (*socket != "") == *find {
		fmt.Fprintln(os.Stderr, "give --socket or --connect")
		os.Exit(2)
	}
	options := []runed.Option{runed.WithProtocol(runed.Protocol(*protocol))}
	if *socket != "" {
		options = append(options, runed.WithSocket(*socket))
	}
	if err := run(context.Background(), options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// call is one line of the input.
type call struct {
	ID   string
	Call string
	Args args
}

type args struct {
	Text        text
	Texts       []text
	Items       [][2]text
	Vectors     [][]float32
	Preset      string
	Role        *runed.Role
	Instruction *string
	Dimensions  *int
	Truncate    *runed.Truncate
	Lane        *runed.Lane
	WithRoute   bool `json:"with_route"`
	TimeoutMS   *int `json:"timeout_ms"`
	Query       text
	Documents   []text
	TopN        int `json:"top_n"`
	Model       string
}

// text is a string, which the table may write as {"repeat": ..., "times": ...}.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	var repeated struct {
		Repeat string
		Times  int
	}
	if json.Unmarshal(data, &repeated) == nil {
		*t = text(strings.Repeat(repeated.Repeat, repeated.Times))
		return nil
	}
	return json.Unmarshal(data, (*string)(t))
}

type object = map[string]any

// run answers each line until there are no more.
func run(ctx context.Context, options []runed.Option) error {
	client, err := runed.Connect(ctx, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	output := json.NewEncoder(os.Stdout)
	for decoder := json.NewDecoder(os.Stdin); decoder.More(); {
		var next call
		if err := decoder.Decode(&next); err != nil {
			return err
		}
		answer := object{"id": next.ID}
		result, err := perform(ctx, client, next)
		if err != nil {
			failure, ok := errorOf(err)
			if !ok {
				return err
			}
			answer["error"] = failure
		} else {
			answer["result"] = result
		}
		if err := output.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

func perform(ctx context.Context, client *runed.Client, next call) (any, error) {
	args := next.Args
	if args.TimeoutMS != nil {
		limited, cancel := context.WithTimeout(ctx, time.Duration(*args.TimeoutMS)*time.Millisecond)
		defer cancel()
		ctx = limited
	}
	switch next.Call {
	case "embed":
		embedding, err := client.Embed(ctx, string(args.Text), args.options()...)
		if err != nil {
			return nil, err
		}
		return resultOf(*embedding), nil
	case "embed_batch":
		embeddings, err := client.EmbedBatch(ctx, args.texts(), args.options()...)
		items := []object{}
		for _, embedding := range embeddings {
			items = append(items, resultOf(embedding))
		}
		return object{"items": items}, err
	case "embed_items":
		outcomes, err := client.EmbedItems(ctx, args.texts(), args.options()...)
		items := []object{}
		for _, outcome := range outcomes {
			items = append(items, itemOf(outcome))
		}
		return object{"items": items}, err
	case "embed_stream":
		items := object{}
		for outcome, err := range client.EmbedStream(ctx, args.items(), args.options()...) {
			if err != nil {
				return nil, err
			}
			items[outcome.ID] = itemOf(outcome)
		}
		return object{"items": items}, nil
	case "count_tokens":
		counts, err := client.CountTokens(ctx, args.texts(), args.options()...)
		return object{"counts": counts}, err
	case "rerank":
		results := []object{}
		ranked, err := client.Rerank(ctx, string(args.Query), written(args.Documents), args.rerankOptions())
		for _, it := range ranked {
			results = append(results, object{
				"index": it.Index, "score": float64(it.Score), "document": it.Document, "token_count": it.TokenCount,
				"total_token_count": it.TotalTokenCount, "truncated": it.Truncated,
			})
		}
		return object{"results": results}, err
	case "set_centroids":
		version, err := client.SetCentroids(ctx, args.Vectors, args.Preset, args.options()...)
		return object{"version": version, "nlist": len(args.Vectors)}, err
	case "warm_up":
		return object{}, client.WarmUp(ctx, args.options()...)
	case "info":
		info, err := client.Info(ctx, args.options()...)
		return fieldsOf(info), err
	case "health":
		health, err := client.Health(ctx, args.options()...)
		return fieldsOf(health), err
	}
	return nil, fmt.Errorf("there is no call %q", next.Call)
}

func (a args) texts() []string { return written(a.Texts) }

func written(texts []text) []string {
	result := make([]string, len(texts))
	for i, text := range texts {
		result[i] = string(text)
	}
	return result
}

func (a args) rerankOptions() runed.RerankOptions {
	result := runed.RerankOptions{TopN: a.TopN, Model: a.Model}
	if a.Truncate != nil {
		result.Truncate = *a.Truncate
	}
	if a.Lane != nil {
		result.Lane = *a.Lane
	}
	return result
}

func (a args) items() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, item := range a.Items {
			if !yield(string(item[0]), string(item[1])) {
				return
			}
		}
	}
}

// options returns the options that the call names. Leaving one out may differ from giving its zero value.
func (a args) options() []runed.EmbedOption {
	var result []runed.EmbedOption
	if a.Role != nil {
		result = append(result, runed.WithRole(*a.Role))
	}
	if a.Instruction != nil {
		result = append(result, runed.WithInstruction(*a.Instruction))
	}
	if a.Dimensions != nil {
		result = append(result, runed.WithDimensions(*a.Dimensions))
	}
	if a.Truncate != nil {
		result = append(result, runed.WithTruncate(*a.Truncate))
	}
	if a.Lane != nil {
		result = append(result, runed.WithLane(*a.Lane))
	}
	if a.Model != "" {
		result = append(result, runed.WithModel(a.Model))
	}
	if a.WithRoute {
		result = append(result, runed.WithRoute())
	}
	return result
}

func resultOf(embedding runed.Embedding) object {
	return object{
		"vector":               embedding.Vector,
		"token_count":          embedding.TokenCount,
		"total_token_count":    embedding.TotalTokenCount,
		"truncated":            embedding.Truncated,
		"fingerprint":          embedding.Fingerprint,
		"prompt":               embedding.Prompt,
		"cached":               embedding.Cached,
		"cluster_id":           embedding.ClusterID,
		"centroid_set_version": embedding.CentroidSetVersion,
		"model":                embedding.Model,
	}
}

func itemOf(item runed.Item) object {
	if failure, ok := errorOf(item.Err); ok {
		return object{"error": failure}
	}
	return resultOf(item.Embedding)
}

func errorOf(err error) (object, bool) {
	var failure *runed.Error
	if !errors.As(err, &failure) {
		return nil, false
	}
	return object{"reason": failure.Reason, "metadata": failure.Metadata}, true
}

// fieldsOf returns all fields of a message by their names in the contract, numbers as numbers and enums by their names.
func fieldsOf(message proto.Message) object {
	reflected, result := message.ProtoReflect(), object{}
	fields := reflected.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		value := reflected.Get(field)
		if field.IsList() {
			values := make([]any, value.List().Len())
			for i := range values {
				values[i] = value.List().Get(i).Interface()
			}
			result[string(field.Name())] = values
			continue
		}
		switch field.Kind() {
		case protoreflect.EnumKind:
			result[string(field.Name())] = value.Enum()
			if known := field.Enum().Values().ByNumber(value.Enum()); known != nil {
				result[string(field.Name())] = known.Name()
			}
		case protoreflect.MessageKind:
			result[string(field.Name())] = fieldsOf(value.Message().Interface())
		default:
			result[string(field.Name())] = value.Interface()
		}
	}
	return result
}
