package interop

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/codes"

	pb "runed.dev/interop/runedv1"
)

const (
	setBytes     = 64 << 20 // as 16,384 centroids of 1,024 values
	messageBytes = 4 << 20
)

// set is a set of centroids in one piece.
type set struct {
	dim    int
	values []float32
	preset string
}

func (s set) nlist() int { return len(s.values) / s.dim }

func (s set) centroid(id int) []float32 { return s.values[id*s.dim : (id+1)*s.dim] }

// version is the hash of the content, as in the contract.
func (s set) version() string {
	sum := sha256.New()
	header := binary.LittleEndian.AppendUint32(nil, uint32(s.dim))
	header = binary.LittleEndian.AppendUint32(header, uint32(s.nlist()))
	sum.Write(append(append(header, s.preset...), 0))
	buffer := make([]byte, 0, 4*s.dim)
	for id := range s.nlist() {
		buffer = buffer[:0]
		for _, value := range s.centroid(id) {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(value))
		}
		sum.Write(buffer)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil))
}

// nearest returns the id of the centroid with the largest inner product; of several, the lowest one.
func (s set) nearest(vector []float32) uint32 {
	winner, best := 0, math.Inf(-1)
	for id := range s.nlist() {
		product := 0.0
		for i, value := range s.centroid(id) {
			product += float64(value) * float64(vector[i])
		}
		if product > best {
			winner, best = id, product
		}
	}
	return uint32(winner)
}

// push sends the set in messages of nearly 4 MiB.
func (s set) push(t *testing.T, client pb.RunedServiceClient, version string) (*pb.SetCentroidsResponse, error) {
	t.Helper()
	stream := must(client.SetCentroids(t.Context()))(t)
	header := &pb.CentroidSetHeader{Version: version, Dim: uint32(s.dim), Nlist: uint32(s.nlist()), Preset: s.preset}
	err := stream.Send(&pb.SetCentroidsRequest{Payload: &pb.SetCentroidsRequest_Header{Header: header}})
	rows := (messageBytes - 1024) / (4*s.dim + 16)
	for start := 0; start < s.nlist() && err == nil; start += rows {
		batch := &pb.CentroidBatch{}
		for id := start; id < min(start+rows, s.nlist()); id++ {
			batch.Centroids = append(batch.Centroids, &pb.Centroid{Id: uint32(id), Vec: s.centroid(id)})
		}
		err = stream.Send(&pb.SetCentroidsRequest{Payload: &pb.SetCentroidsRequest_Batch{Batch: batch}})
	}
	return stream.CloseAndRecv() // which tells why sending failed
}

func TestRouting(t *testing.T) {
	t.Parallel()
	h := must(makeHome())(t)
	t.Cleanup(h.remove)
	if err := h.ensure(); err != nil {
		t.Fatal(err)
	}
	client := dial(t, h)
	waitReady(t, client)
	_, err := client.Embed(t.Context(), &pb.EmbedRequest{Text: "green tea", WithRoute: true})
	wantRefusal(t, err, codes.FailedPrecondition, "NO_CENTROID_SET")

	dim := int(must(client.Info(t.Context(), &pb.InfoRequest{}))(t).GetVectorDim())
	large := set{dim: dim, values: make([]float32, setBytes/4/dim*dim), preset: "interop"}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range large.values {
		large.values[i] = float32(random.NormFloat64())
	}
	version := large.version()
	response := must(large.push(t, client, version))(t)
	if response.GetVersion() != version || int(response.GetNlist()) != large.nlist() {
		t.Errorf("%v, instead of %s with %d", response, version, large.nlist())
	}
	wantRoutes(t, client, large, version)

	// A refused set leaves the earlier one in place.
	small := set{dim: dim, values: large.values[:8*dim], preset: "interop"}
	_, err = small.push(t, client, version)
	wantRefusal(t, err, codes.InvalidArgument, "BAD_CENTROIDS")
	_, err = set{dim: dim + 1, values: make([]float32, 2*(dim+1))}.push(t, client, "")
	wantRefusal(t, err, codes.InvalidArgument, "BAD_CENTROIDS")
	wantRoutes(t, client, large, version)

	// Without a preset the version is not checked.
	small.preset = ""
	must(small.push(t, client, "mine"))(t)
	small.values = large.values[8*dim : 16*dim]
	named := must(small.push(t, client, "mine too"))(t).GetVersion()
	wantRoutes(t, client, small, named)

	// A restarted daemon has the set.
	if err := h.command("stop"); err != nil {
		t.Fatal(err)
	}
	if err := h.ensure(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, client)
	wantRoutes(t, client, small, named)
}

// wantRoutes checks that texts have the expected centroids.
func wantRoutes(t *testing.T, client pb.RunedServiceClient, s set, version string) {
	t.Helper()
	texts := []string{"green tea", "the stock market", "a dog in the park"}
	batch := must(client.EmbedBatch(t.Context(), &pb.EmbedBatchRequest{Texts: texts, WithRoute: true}))(t)
	for i, embedding := range batch.GetEmbeddings() {
		single := must(client.Embed(t.Context(), &pb.EmbedRequest{Text: texts[i], WithRoute: true}))(t)
		want := s.nearest(single.GetVector())
		for _, routed := range []*pb.EmbedResponse{embedding, single} {
			if routed.GetClusterId() != want || routed.GetCentroidSetVersion() != version {
				t.Errorf("%q: centroid %d of %s, instead of %d of %s",
					texts[i], routed.GetClusterId(), routed.GetCentroidSetVersion(), want, version)
			}
		}
	}
	if info := must(client.Info(t.Context(), &pb.InfoRequest{}))(t); info.GetCentroidSetVersion() != version {
		t.Errorf("Info tells %s, instead of %s", info.GetCentroidSetVersion(), version)
	}
}
