package runed

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"
	runedv1 "runed.dev/gen/go/runed/v1"
)

// EmbedStream embeds any number of texts in constant memory. It yields each as it is ready, in no particular order.
//
//	for item, err := range client.EmbedStream(ctx, maps.All(texts)) {
//		if err != nil {
//			return err // not the fault of a single text; the stream ends with it
//		}
//		store(item.ID, item.Vector, item.Err)
//	}
//
// The texts are pairs of an id, which need not be unique, and a text. Another goroutine takes them from the sequence, at most 512
// texts or 4 MiB ahead. The loop waits for that goroutine when it ends. So a sequence that may block for long should watch a
// context, and a body that leaves the loop early should end that context first.
//
// If the daemon goes away on the way, the client starts it again and sends the unanswered texts once more. Each text has exactly
// one outcome. [WithTimeout] limits the time without a result while texts wait for one.
func (c *Client) EmbedStream(ctx context.Context, texts iter.Seq2[string, string], options ...EmbedOption) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		o, err := resolve(options)
		if err == nil && o.route {
			err = newError(ErrInvalidRequest, map[string]string{"field": "with_route"}, "a stream has no routes; use EmbedBatch")
		}
		if err != nil {
			yield(Item{}, err)
			return
		}
		s := &stream{
			client:     c,
			options:    o,
			room:       semaphore.NewWeighted(streamBytes),
			queue:      make(chan *entry, streamTexts),
			ready:      make(chan outcome, streamTexts),
			unanswered: map[uint64]*entry{},
		}
		ctx, cancel := context.WithCancelCause(ctx)
		var workers sync.WaitGroup
		defer workers.Wait()
		defer cancel(nil)
		workers.Go(func() { s.feed(ctx, texts) })
		if c.timeout > 0 {
			workers.Go(func() { s.watch(ctx, c.timeout, cancel) })
		}
		workers.Go(func() { err = s.work(ctx); close(s.ready) })
		for done := range s.ready {
			if !yield(done.item, nil) {
				return
			}
			s.room.Release(done.weight)
		}
		if err != nil {
			yield(Item{}, err)
		}
	}
}

// entry is a text that was taken from the caller. It lives until it is answered, over the ends of connections.
type entry struct {
	id   string
	text string
}

func (e *entry) size() int { return len(e.text) + itemOverhead }

// weight is the share of streamBytes that the text takes: never so little that more than streamTexts fit.
func (e *entry) weight() int64 {
	return int64(min(max(e.size(), streamBytes/streamTexts), streamBytes))
}

type outcome struct {
	item   Item
	weight int64
}

type bidi = connect.BidiStreamForClient[runedv1.EmbedStreamRequest, runedv1.EmbedStreamResponse]

// stream is one call of EmbedStream. No goroutine ever waits to put something into queue or ready: room limits both.
type stream struct {
	client  *Client
	options *wireOptions
	room    *semaphore.Weighted
	queue   chan *entry  // texts that were taken and not sent; closed at the end of the caller's texts
	ready   chan outcome // outcomes that the caller has yet to get
	space   spaceGuard

	mutex      sync.Mutex
	unanswered map[uint64]*entry // by the number that stands for the caller's id on the wire
	taken      uint64
	moved      time.Time // when the last text was taken or answered
}

// watch ends a stream in which texts wait longer than the limit without any result.
func (s *stream) watch(ctx context.Context, limit time.Duration, end context.CancelCauseFunc) {
	for left := limit; pause(ctx, left) == nil; {
		if left = s.patienceLeft(limit); left <= 0 {
			end(newError(ErrDeadlineExceeded, nil,
				"no embedding of the stream came within %v; give it more time, or send less at once", limit))
			return
		}
	}
}

func (s *stream) patienceLeft(limit time.Duration) time.Duration {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.unanswered) == 0 {
		return limit
	}
	return limit - time.Since(s.moved)
}

// feed takes the caller's texts while there is room.
func (s *stream) feed(ctx context.Context, texts iter.Seq2[string, string]) {
	defer close(s.queue)
	for id, text := range texts {
		next := &entry{id, text}
		if s.room.Acquire(ctx, next.weight()) != nil {
			return
		}
		s.queue <- next
	}
}

// work exchanges texts for outcomes until all texts are answered, over as many connections as it takes.
func (s *stream) work(ctx context.Context) error {
	attempts := &tries{client: s.client, model: s.options.model, reconnect: true}
	for {
		// A connection is opened only for a text.
		if !s.waiting() && s.next(ctx, true) == 0 {
			if ctx.Err() != nil {
				return errorOfContext(ctx)
			}
			return nil
		}
		var failure *Error
		if !errors.As(s.converse(ctx, attempts), &failure) {
			continue
		}
		if gone := failure.Reason == ErrDaemonUnavailable || failure.Reason == ErrShuttingDown; gone && !s.waiting() {
			continue
		}
		if err := attempts.recover(ctx, failure); err != nil {
			return err
		}
	}
}

// converse sends and receives on one connection until it is over.
func (s *stream) converse(ctx context.Context, attempts *tries) error {
	limits, err := s.client.askLimits(ctx, s.options.batchRequest()) // of the daemon that listens now
	if err != nil {
		return err
	}
	if err := s.client.begin(); err != nil {
		return err
	}
	defer s.client.end()
	callContext, cancel := context.WithCancel(ctx)
	connection := s.client.streams.EmbedStream(callContext)
	var sender sync.WaitGroup
	sender.Go(func() { s.send(callContext, connection, limits.bytes) })
	err = s.receive(ctx, connection, attempts)
	cancel()
	sender.Wait()
	_ = connection.CloseResponse() // of a stream that has ended
	if err == nil && s.waiting() {
		return newError(ErrShuttingDown, nil, "the daemon ended the stream before it had answered all texts")
	}
	return err
}

// send sends the texts that an earlier connection left unanswered, and then the caller's texts as they come.
//
// It ignores errors of the connection: receive meets them too, and knows more.
func (s *stream) send(ctx context.Context, connection *bidi, limit int) {
	defer func() { _ = connection.CloseRequest() }()
	o := s.options
	message := &runedv1.EmbedStreamRequest{
		Lane: o.lane, Role: o.role, Instruction: o.instruction, Dimensions: o.dimensions, Truncate: o.truncate,
		Model: o.model,
	}
	limit -= proto.Size(message)
	again := s.numbers()
	var number uint64 // of a text that did not fit into the last message
	for {
		message.Items = nil
		for size := 0; len(message.Items) < messageTexts; number = 0 {
			switch {
			case number != 0:
			case len(again) > 0:
				number, again = again[0], again[1:]
			default:
				number = s.next(ctx, len(message.Items) == 0)
			}
			if number == 0 {
				break
			}
			next := s.get(number)
			if size > 0 && size+next.size() > min(messageBytes, limit) {
				break
			}
			if err := next.check(limit); err != nil {
				s.settle(number, Item{Err: err})
				continue
			}
			message.Items = append(message.Items, &runedv1.EmbedStreamItem{Id: strconv.FormatUint(number, 10), Text: next.text})
			size += next.size()
		}
		if len(message.Items) == 0 || connection.Send(message) != nil {
			return
		}
		message = &runedv1.EmbedStreamRequest{}
	}
}

// check makes sure that a text can be sent.
func (e *entry) check(limit int) error {
	if err := checkText(e.text, theText); err != nil {
		return err
	}
	return checkLength(e.size(), limit, theText)
}

// receive settles texts as the daemon answers them, until the daemon ends the stream.
func (s *stream) receive(ctx context.Context, connection *bidi, attempts *tries) error {
	for {
		answer, err := connection.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errorOf(ctx, s.client.daemon.socket, err)
		}
		for _, result := range answer.GetResults() {
			number, err := strconv.ParseUint(result.GetId(), 10, 64)
			if err != nil || s.get(number) == nil {
				return newError(ErrInternal, nil, "the daemon answered a text that was not sent, or answered it twice")
			}
			item, err := itemOf(result.GetEmbedding(), answer)
			if err == nil && item.Err == nil {
				err = s.checkSpace(answer)
			}
			if err != nil {
				return err
			}
			s.settle(number, item)
			attempts.reset()
		}
	}
}

// checkSpace makes sure that the vectors of an answer are those that were asked for, and comparable with those before.
func (s *stream) checkSpace(answer answer) error {
	if err := s.options.checkKnown(answer); err != nil {
		return err
	}
	return s.space.check(answer.GetFingerprint())
}

// next takes a text from the queue and returns its number. It returns 0 at the end of the caller's texts and at the end of the
// context; without wait, also if the queue is empty at this moment.
func (s *stream) next(ctx context.Context, wait bool) uint64 {
	var found *entry
	if wait {
		select {
		case found = <-s.queue:
		case <-ctx.Done():
		}
	} else {
		select {
		case found = <-s.queue:
		default:
		}
	}
	if found == nil {
		return 0
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.taken++
	s.moved = time.Now()
	s.unanswered[s.taken] = found
	return s.taken
}

// settle hands the outcome of a text over to the caller.
func (s *stream) settle(number uint64, item Item) {
	s.mutex.Lock()
	settled := s.unanswered[number]
	delete(s.unanswered, number)
	s.moved = time.Now()
	s.mutex.Unlock()
	item.ID = settled.id
	s.ready <- outcome{item, settled.weight()}
}

func (s *stream) get(number uint64) *entry {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.unanswered[number]
}

// numbers returns the numbers of the unanswered texts, in the order in which they were taken.
func (s *stream) numbers() []uint64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	result := make([]uint64, 0, len(s.unanswered))
	for number := range s.unanswered {
		result = append(result, number)
	}
	slices.Sort(result)
	return result
}

func (s *stream) waiting() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.unanswered) > 0
}
