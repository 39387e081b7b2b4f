package runed

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"unicode/utf8"
)

// place says in an error where a text stands.
type place struct {
	name     string
	metadata map[string]string
}

var theText = place{name: "the text"}

func placeInBatch(index int) place {
	return place{fmt.Sprintf("text %d of the batch", index), map[string]string{"index": strconv.Itoa(index)}}
}

// checkText makes sure that a text can be sent at all.
func checkText(text string, where place) error {
	if !utf8.ValidString(text) {
		return newError(ErrInvalidText, maps.Clone(where.metadata),
			"%s is not valid UTF-8; it was most likely decoded by the wrong codec, or cut in the middle of a character", where.name)
	}
	return nil
}

// checkLength makes sure that a text fits into a request of its own.
func checkLength(length, limit int, where place) error {
	if length <= limit {
		return nil
	}
	metadata := map[string]string{"limit": strconv.Itoa(limit)}
	maps.Copy(metadata, where.metadata)
	return newError(ErrRequestTooLarge, metadata,
		"%s has %d bytes, but one request may have %d; no model reads as much, so cut it into passages", where.name, length, limit)
}

// measure makes sure that a text of a batch fits into a request whose texts may have maxBytes.
func measure(text string, index, maxBytes int) error {
	length := len(text) + textOverhead
	if utf8.ValidString(text) && length <= maxBytes {
		return nil // before the place costs anything
	}
	where := placeInBatch(index)
	if err := checkText(text, where); err != nil {
		return err
	}
	return checkLength(length, maxBytes, where)
}

// split cuts a batch into requests that keep to the limits. It yields where each starts and ends, as for a slice.
func split(texts []string, limits limits) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		start, size := 0, 0
		for index, text := range texts {
			length := len(text) + textOverhead
			if index-start == limits.texts || size+length > limits.bytes {
				if !yield(start, index) {
					return
				}
				start, size = index, 0
			}
			size += length
		}
		if len(texts) > 0 {
			yield(start, len(texts))
		}
	}
}

// relocated tells the place in the caller's batch of a text that the daemon refused as part of one request.
func relocated(err error, start, count int) error {
	var failure *Error
	if start == 0 || !errors.As(err, &failure) {
		return err
	}
	index, parseError := strconv.Atoi(failure.Metadata["index"])
	if parseError != nil {
		return err
	}
	told := *failure
	told.Metadata = maps.Clone(failure.Metadata)
	told.Metadata["index"] = strconv.Itoa(start + index)
	told.Message = fmt.Sprintf("in the request that starts with text %d of the batch, %d texts long: %s", start, count, failure.Message)
	return &told
}
