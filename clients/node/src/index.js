// The messages of the contract, and grpc-js clients of its services.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import { AuditService } from "../gen/sluice/v1/audit_pb.js";
import { DecisionService } from "../gen/sluice/v1/decisions_pb.js";
import { IngestService } from "../gen/sluice/v1/ingest_pb.js";
import { ReviewService } from "../gen/sluice/v1/review_pb.js";
import { SchemaService } from "../gen/sluice/v1/schema_pb.js";

export * from "../gen/google/type/money_pb.js";
export * from "../gen/sluice/v1/audit_pb.js";
export * from "../gen/sluice/v1/decision_pb.js";
export * from "../gen/sluice/v1/decisions_pb.js";
export * from "../gen/sluice/v1/event_pb.js";
export * from "../gen/sluice/v1/ingest_pb.js";
export * from "../gen/sluice/v1/review_pb.js";
export * from "../gen/sluice/v1/schema_pb.js";

export const AuditClient = client(AuditService);
export const DecisionClient = client(DecisionService);
export const IngestClient = client(IngestService);
export const ReviewClient = client(ReviewService);
export const SchemaClient = client(SchemaService);

// protobuf-es knows the messages and grpc-js the transport; this is all that stands between them. A request may be a
// plain object with the fields of its message.
function client(service) {
  const methods = service.methods.map(({ localName, name, methodKind, input, output }) => [
    localName,
    {
      path: `/${service.typeName}/${name}`,
      requestStream: methodKind === "client_streaming" || methodKind === "bidi_streaming",
      responseStream: methodKind === "server_streaming" || methodKind === "bidi_streaming",
      requestSerialize: (request) => Buffer.from(toBinary(input, create(input, request))),
      requestDeserialize: (bytes) => fromBinary(input, bytes),
      responseSerialize: (response) => Buffer.from(toBinary(output, create(output, response))),
      responseDeserialize: (bytes) => fromBinary(output, bytes),
    },
  ]);
  return grpc.makeClientConstructor(Object.fromEntries(methods), service.typeName);
}
