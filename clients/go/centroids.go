package runed

import (
	"context"
	"errors"

	runedv1 "runed.dev/gen/go/runed/v1"
)

// SetCentroids replaces the daemon's set of centroids, in which WithRoute finds the nearest one. It returns the version of the new
// set, which is the hash of its content.
//
// Each centroid has as many values as a vector of the model. Its place in the set is its id. All clients of the daemon share the
// set, and the daemon keeps it over its restarts. A set that does not arrive whole leaves the one before in its place. The preset
// names the parameters that the set was built with; may be empty.
func (c *Client) SetCentroids(ctx context.Context, centroids [][]float32, preset string) (version string, err error) {
	if len(centroids) == 0 || len(centroids[0]) == 0 {
		return "", newError(ErrBadCentroids, nil, "a set needs one centroid at least, and a centroid one value")
	}
	for id, centroid := range centroids {
		if len(centroid) != len(centroids[0]) {
			return "", newError(ErrBadCentroids, nil,
				"centroid %d has %d values, but the first one %d", id, len(centroid), len(centroids[0]))
		}
	}
	if err := checkText(preset, place{name: "the preset"}); err != nil {
		return "", err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if err := c.watchStart(ctx, "", false); err != nil {
		return "", err
	}
	attempts := tries{client: c}
	for {
		response, err := c.sendCentroids(ctx, centroids, preset)
		if err == nil {
			return response.GetVersion(), nil
		}
		if err := attempts.recover(ctx, err); err != nil {
			return "", err
		}
	}
}

// sendCentroids sends a set once.
func (c *Client) sendCentroids(
	ctx context.Context, centroids [][]float32, preset string,
) (*runedv1.SetCentroidsResponse, *Error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	defer c.end()
	callContext, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.streams.SetCentroids(callContext)
	header := &runedv1.CentroidSetHeader{Dim: uint32(len(centroids[0])), Nlist: uint32(len(centroids)), Preset: preset}
	err := stream.Send(&runedv1.SetCentroidsRequest{Payload: &runedv1.SetCentroidsRequest_Header{Header: header}})
	rows := max(1, centroidBytes/(4*len(centroids[0])))
	for start := 0; start < len(centroids) && err == nil; start += rows {
		batch := &runedv1.CentroidBatch{}
		for id := start; id < min(start+rows, len(centroids)); id++ {
			batch.Centroids = append(batch.Centroids, &runedv1.Centroid{Id: uint32(id), Vec: centroids[id]})
		}
		err = stream.Send(&runedv1.SetCentroidsRequest{Payload: &runedv1.SetCentroidsRequest_Batch{Batch: batch}})
	}
	// If the daemon stopped reading, its answer says why. The error of the sending itself says nothing.
	response, err := stream.CloseAndReceive()
	if err != nil {
		return nil, errorOf(ctx, c.daemon.socket, err)
	}
	if int(response.Msg.GetNlist()) != len(centroids) {
		return nil, errorOf(ctx, c.daemon.socket, errors.New("it installed another set than was sent"))
	}
	return response.Msg, nil
}
