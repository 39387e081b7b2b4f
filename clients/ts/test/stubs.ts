import { createClient } from "@connectrpc/connect";
import { createRunedTransport } from "runed-client";
import { Role, RunedService } from "runed-client/proto";

const service = createClient(RunedService, createRunedTransport()); // starts the daemon if none runs
const { vector, tokenCount } = await service.embed({ text: "green tea", role: Role.DOCUMENT });
console.log(vector.length, tokenCount);
