// The public suite of the protocol, against the server at STREAMS_URL. Without subscriptions.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({ baseUrl: process.env.STREAMS_URL, longPollTimeoutMs: 3000 });
