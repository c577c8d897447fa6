// The conformance suite of Durable Streams, unmodified, with all of its options.
import {runConformanceTests} from "@durable-streams/server-conformance-tests"

runConformanceTests({baseUrl: process.env.CONFORMANCE_TEST_URL, subscriptions: true})
