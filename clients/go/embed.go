package runed

import (
	"context"
	"maps"

	"google.golang.org/protobuf/proto"
	runedv1 "runed.dev/gen/go/runed/v1"
)

// Embedding is the vector of one text, with facts about it.
type Embedding struct {
	// Vector has the L2 norm 1. It has as many values as Info's vector_dim says, or as WithDimensions asked for.
	Vector []float32
	// TokenCount is the number of tokens that the model read: those of the text, those of its prompt, and special ones.
	TokenCount int
	// TotalTokenCount is the number of tokens before anything was cut off.
	TotalTokenCount int
	// Truncated tells whether something was cut off, which WithTruncate allows.
	Truncated bool
	// Fingerprint names the space that the vector lies in. Keep it beside stored vectors, and compare only vectors of the same one.
	Fingerprint string
	// Prompt is the words that were put in front of the text; may be empty.
	Prompt string
	// Cached tells whether the vector came from the cache, or from the same text in flight.
	Cached bool
	// ClusterID is the id of the nearest centroid; only with WithRoute.
	ClusterID uint32
	// CentroidSetVersion is the version of the set that ClusterID belongs to; only with WithRoute.
	CentroidSetVersion string
	// Model is the name of the model; empty if the daemon is of a version with one model.
	Model string
}

// Item is the outcome of one of several texts: its embedding, or the error that says why there is none.
type Item struct {
	// ID is the caller's name for the text; only in EmbedStream.
	ID string
	// Embedding is the embedding, if Err is nil.
	Embedding
	// Err is a *Error, or nil.
	Err error
}

// Embed embeds one text. The text must not be empty, nor have more tokens than Info's max_text_length, unless WithTruncate
// allows it.
//
// Embed waits while the daemon fetches its engine and model, which takes minutes the first time.
func (c *Client) Embed(ctx context.Context, text string, options ...EmbedOption) (*Embedding, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if err := checkText(text, theText); err != nil {
		return nil, err
	}
	request := &runedv1.EmbedRequest{
		WithRoute: o.route, Lane: o.lane, Role: o.role, Instruction: o.instruction, Dimensions: o.dimensions, Truncate: o.truncate,
		Model: o.model,
	}
	common := proto.CloneOf(request)
	request.Text = text
	var response *runedv1.EmbedResponse
	embed := func() (err error) {
		response, err = callWhenReady(ctx, tries{client: c}, c.unary.Embed, request)
		return err
	}
	if len(text) <= largeText {
		err = embed()
	} else {
		err = c.withinLimits(ctx, common, func(room limits) error {
			if err := checkLength(len(text)+textOverhead, room.bytes, theText); err != nil {
				return err
			}
			return embed()
		})
	}
	if err != nil {
		return nil, err
	}
	if err := o.checkKnown(response); err != nil {
		return nil, err
	}
	if len(response.GetVector()) == 0 {
		return nil, noVector()
	}
	result := embeddingOf(response, response)
	return &result, nil
}

// EmbedBatch embeds many texts and returns the embeddings in the order of the texts. It sends as many requests as the daemon's
// limits demand.
//
// If a text cannot be embedded, the call fails. The error's metadata then has the text's "index".
func (c *Client) EmbedBatch(ctx context.Context, texts []string, options ...EmbedOption) ([]Embedding, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if len(texts) == 0 {
		return []Embedding{}, nil
	}
	var result []Embedding
	err = c.withinLimits(ctx, o.batchRequest(), func(room limits) error {
		result = make([]Embedding, 0, len(texts))
		var space spaceGuard
		return inParts(texts, room, func(start int, part []string) error {
			response, err := c.embedBatch(ctx, o, part, false)
			if err != nil {
				return relocated(err, start, len(part))
			}
			if err := o.checkKnown(response); err != nil {
				return err
			}
			if err := space.check(response.GetFingerprint()); err != nil {
				return err
			}
			for _, embedding := range response.GetEmbeddings() {
				length := len(embedding.GetVector())
				if length == 0 || (len(result) > 0 && length != len(result[0].Vector)) {
					return noVector()
				}
				result = append(result, embeddingOf(embedding, response))
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// EmbedItems embeds many texts as EmbedBatch does, but a text that cannot be embedded does not fail the others.
//
// It returns one item for each text, in their order. It returns an error if the fault is not that of a single text.
func (c *Client) EmbedItems(ctx context.Context, texts []string, options ...EmbedOption) ([]Item, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if len(texts) == 0 {
		return []Item{}, nil
	}
	common := o.batchRequest()
	common.PerItemErrors = true
	var result []Item
	err = c.withinLimits(ctx, common, func(room limits) (err error) {
		result, err = c.embedItems(ctx, o, texts, room)
		return err
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c *Client) embedItems(ctx context.Context, o *wireOptions, texts []string, room limits) ([]Item, error) {
	result := make([]Item, len(texts))
	var sendable []int
	var part []string
	for index, text := range texts {
		if err := measure(text, index, room.bytes); err != nil {
			result[index].Err = err
			continue
		}
		sendable, part = append(sendable, index), append(part, text)
	}
	var space spaceGuard
	for start, end := range split(part, room) {
		response, err := c.embedBatch(ctx, o, part[start:end], true)
		if err != nil {
			return nil, err
		}
		if response.GetFingerprint() == "" {
			return nil, tooOld("gives no details of an embedding")
		}
		if err := checkNamed(o.model, response); err != nil {
			return nil, err
		}
		if err := space.check(response.GetFingerprint()); err != nil {
			return nil, err
		}
		for place, embedding := range response.GetEmbeddings() {
			index := sendable[start+place]
			if result[index], err = itemOf(embedding, response); err != nil {
				return nil, err
			}
			if failure, ok := result[index].Err.(*Error); ok {
				maps.Copy(failure.Metadata, placeInBatch(index).metadata)
			}
		}
	}
	return result, nil
}

// CountTokens counts the tokens that embedding each text would take: those of the text, those of its prompt, and special ones. It
// embeds nothing. A text may be longer than the model reads. Only the options for role,
// instruction and model matter.
func (c *Client) CountTokens(ctx context.Context, texts []string, options ...EmbedOption) ([]int, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if len(texts) == 0 {
		return []int{}, nil
	}
	var result []int
	common := &runedv1.CountTokensRequest{Role: o.role, Instruction: o.instruction, Model: o.model}
	err = c.withinLimits(ctx, common, func(room limits) error {
		result = make([]int, 0, len(texts))
		return inParts(texts, room, func(start int, part []string) error {
			request := &runedv1.CountTokensRequest{Texts: part, Role: o.role, Instruction: o.instruction, Model: o.model}
			response, err := callWhenReady(ctx, tries{client: c}, c.unary.CountTokens, request)
			if err != nil {
				return relocated(err, start, len(part))
			}
			if len(response.GetTokenCounts()) != len(part) {
				return newError(ErrInternal, nil, "the daemon counted the tokens of other texts than were asked for; send them again")
			}
			if err := checkNamed(o.model, response); err != nil {
				return err
			}
			for _, count := range response.GetTokenCounts() {
				result = append(result, int(count))
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c *Client) embedBatch(ctx context.Context, o *wireOptions, texts []string, perItem bool) (*runedv1.EmbedBatchResponse, error) {
	request := o.batchRequest()
	request.Texts, request.PerItemErrors = texts, perItem
	response, err := callWhenReady(ctx, tries{client: c}, c.unary.EmbedBatch, request)
	if err == nil && len(response.GetEmbeddings()) != len(texts) {
		return nil, noVector()
	}
	return response, err
}

func (o *wireOptions) batchRequest() *runedv1.EmbedBatchRequest {
	return &runedv1.EmbedBatchRequest{
		WithRoute: o.route, Lane: o.lane, Role: o.role, Instruction: o.instruction, Dimensions: o.dimensions, Truncate: o.truncate,
		Model: o.model,
	}
}

// itemOf reads the outcome of one text of several. It drops the place that the daemon tells: that is the place in one request,
// which the caller does not know.
func itemOf(message *runedv1.EmbedResponse, answer answer) (Item, error) {
	if failure := message.GetError(); failure != nil {
		metadata := map[string]string{}
		maps.Copy(metadata, failure.GetMetadata())
		delete(metadata, "index")
		return Item{Err: newError(Reason(failure.GetReason()), metadata, "%s", failure.GetMessage())}, nil
	}
	if len(message.GetVector()) == 0 {
		return Item{}, noVector()
	}
	return Item{Embedding: embeddingOf(message, answer)}, nil
}

// answer is a message with embeddings, which tells once what all of them share.
type answer interface {
	GetFingerprint() string
	GetPrompt() string
	GetModel() string
}

func embeddingOf(message *runedv1.EmbedResponse, answer answer) Embedding {
	return Embedding{
		Vector:             message.GetVector(),
		TokenCount:         int(message.GetTokenCount()),
		TotalTokenCount:    int(message.GetTotalTokenCount()),
		Truncated:          message.GetTruncated(),
		Fingerprint:        answer.GetFingerprint(),
		Prompt:             answer.GetPrompt(),
		Model:              answer.GetModel(),
		Cached:             message.GetCached(),
		ClusterID:          message.GetClusterId(),
		CentroidSetVersion: message.GetCentroidSetVersion(),
	}
}

func noVector() error {
	return newError(ErrBackendFault, nil, "the daemon answered other vectors than were asked for; send the texts again")
}

// spaceGuard makes sure that all vectors of one result lie in the same space, though they come in several answers.
type spaceGuard struct{ first *string }

func (g *spaceGuard) check(fingerprint string) error {
	if g.first == nil {
		g.first = &fingerprint
	}
	if *g.first != fingerprint {
		return newError(ErrInternal, map[string]string{"before": *g.first, "now": fingerprint},
			"the daemon changed its model or engine on the way: the fingerprint was %q, now it is %q; "+
				"their vectors cannot be compared, so embed all of the texts again", *g.first, fingerprint)
	}
	return nil
}
