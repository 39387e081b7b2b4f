package runed

import (
	"context"
	"slices"

	runedv1 "runed.dev/gen/go/runed/v1"
)

// RerankOptions changes how documents are ranked. The zero value has the defaults.
type RerankOptions struct {
	// TopN is the most results; 0 means all documents.
	TopN int
	// Model is the name of a reranker; empty means the daemon's only one.
	Model string
	// Truncate chooses how to deal with a document that, together with the query, is longer than the model reads. The query is
	// never cut.
	Truncate Truncate
	// Lane chooses the queue. Without one, the daemon chooses by the number of documents.
	Lane Lane
}

// RankedDocument is one document in its place.
type RankedDocument struct {
	// Index is the place of the document among those of the call.
	Index int
	// Score is the relevance, from 0 to 1.
	Score float32
	// Document is the document.
	Document string
	// TokenCount is the number of tokens that the model read: those of the query, of the document, and special ones.
	TokenCount int
	// TotalTokenCount is the number of tokens before anything was cut off.
	TotalTokenCount int
	// Truncated tells whether something was cut off.
	Truncated bool
	// Cached tells whether the score was not computed for this call.
	Cached bool
}

// Rerank ranks documents by their relevance to a query, the best one first. It sends as many requests as the daemon's limits demand.
//
// Neither the query nor a document may be blank. Documents of equal scores keep their order.
func (c *Client) Rerank(ctx context.Context, query string, documents []string, options RerankOptions) ([]RankedDocument, error) {
	o, err := resolve([]EmbedOption{WithTruncate(options.Truncate), WithLane(options.Lane), WithModel(options.Model)})
	if err != nil {
		return nil, err
	}
	if options.TopN < 0 {
		return nil, newError(ErrInvalidRequest, nil, "TopN is %d; give a number from 1 on, or 0 for all documents", options.TopN)
	}
	if err := checkText(query, place{name: "query"}); err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if len(documents) == 0 {
		return []RankedDocument{}, nil
	}
	request := func(part []string) *runedv1.RerankRequest {
		return &runedv1.RerankRequest{
			Query: query, Documents: part, TopN: uint32(options.TopN), Model: o.model, Lane: o.lane, Truncate: o.truncate,
		}
	}
	var result []RankedDocument
	err = c.withinLimits(ctx, request(nil), func(room limits) error {
		if err := checkLength(2*len(query), room.bytes+len(query), place{name: "query"}); err != nil {
			return err
		}
		result = make([]RankedDocument, 0, len(documents))
		var space spaceGuard
		return inParts(documents, room, func(start int, part []string) error {
			response, err := callWhenReady(ctx, tries{client: c}, c.unary.Rerank, request(part))
			if err != nil {
				return relocated(err, start, len(part))
			}
			wanted := len(part)
			if options.TopN > 0 {
				wanted = min(wanted, options.TopN)
			}
			isForeign := func(item *runedv1.RerankResult) bool { return int(item.GetIndex()) >= len(part) }
			if len(response.GetResults()) != wanted || slices.ContainsFunc(response.GetResults(), isForeign) {
				return newError(ErrInternal, nil, "the daemon ranked other documents than were asked for; send them again")
			}
			for _, item := range response.GetResults() {
				result = append(result, rankedOf(item, start, part))
			}
			return space.check(response.GetFingerprint())
		})
	})
	if err != nil {
		return nil, err
	}
	// For several requests. A stable sort keeps the order of equal ones.
	slices.SortStableFunc(result, func(one, other RankedDocument) int {
		switch {
		case one.Score > other.Score:
			return -1
		case one.Score < other.Score:
			return 1
		}
		return 0
	})
	if options.TopN > 0 && len(result) > options.TopN {
		result = result[:options.TopN]
	}
	return result, nil
}

func rankedOf(item *runedv1.RerankResult, start int, part []string) RankedDocument {
	return RankedDocument{
		Index:           start + int(item.GetIndex()),
		Score:           item.GetScore(),
		Document:        part[item.GetIndex()],
		TokenCount:      int(item.GetTokenCount()),
		TotalTokenCount: int(item.GetTotalTokenCount()),
		Truncated:       item.GetTruncated(),
		Cached:          item.GetCached(),
	}
}
