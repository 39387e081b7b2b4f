/** A set of routing centroids on its way to the daemon. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { RunedError } from "./errors.js";
import { type Centroid, CentroidSchema, type SetCentroidsRequestSchema } from "./gen/runed/v1/runed_pb.js";
import { CENTROID_BYTES } from "./policy.js";

/** The number of the field `Centroid.vec`. */
const VEC_FIELD = 2;

/** The names of a set. */
export interface CentroidNames {
  /** The name of the parameters that the set was built with. */
  preset?: string | undefined;
  /** The name of the set; by default the hash of its content. With a preset, the daemon checks that it is that hash. */
  version?: string | undefined;
}

/**
 * Checks and copies the centroids of a caller.
 *
 * @throws RunedError BAD_CENTROIDS: They differ in their number of values.
 */
export function readCentroids(vectors: Iterable<ArrayLike<number>>): Float32Array[] {
  const set = Array.from(vectors, (vector) => (vector instanceof Float32Array ? vector : Float32Array.from(vector)));
  for (const [id, vector] of set.entries()) {
    if (vector.length !== set[0]?.length) {
      throw new RunedError(
        "BAD_CENTROIDS",
        `centroid ${id} has ${vector.length} values, but the first one has ${set[0]?.length}; give all the same number`,
      );
    }
  }
  return set;
}

/** Yields the messages that carry a set for a model: its header, then its centroids in the order of their ids. */
export async function* centroidMessages(
  set: readonly Float32Array[],
  { preset = "", version = "" }: CentroidNames,
  model: string,
): AsyncGenerator<MessageInitShape<typeof SetCentroidsRequestSchema>> {
  const dim = set[0]?.length ?? 0;
  yield { payload: { case: "header", value: { version, dim, nlist: set.length, preset, model } } };
  const step = Math.max(1, Math.floor(CENTROID_BYTES / (4 * dim)));
  for (let start = 0; start < set.length; start += step) {
    const centroids = set.slice(start, start + step).map((vector, index) => centroid(start + index, vector));
    yield { payload: { case: "batch", value: { centroids } } };
  }
}

/**
 * Makes a centroid whose values are already encoded.
 *
 * A packed field of floats holds their bytes. protobuf-es would make an object of each value, which takes some gigabytes for a
 * large set. It writes unknown fields as they are, so the bytes go in as one.
 */
function centroid(id: number, vector: Float32Array): Centroid {
  const message = create(CentroidSchema, { id });
  // Every platform of runed holds them as little-endian.
  const bytes = new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength);
  const data = new BinaryWriter().bytes(bytes).finish();
  message.$unknown = [{ no: VEC_FIELD, wireType: WireType.LengthDelimited, data }];
  return message;
}
