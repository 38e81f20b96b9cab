// Types of index.js: every client has the methods of its service, typed like any grpc-js client.

import type { DescMessage, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { GenService } from "@bufbuild/protobuf/codegenv2";
import type * as grpc from "@grpc/grpc-js";

import type { AuditService } from "../gen/sluice/v1/audit_pb.js";
import type { DecisionService } from "../gen/sluice/v1/decisions_pb.js";
import type { IngestService } from "../gen/sluice/v1/ingest_pb.js";
import type { ReviewService } from "../gen/sluice/v1/review_pb.js";
import type { SchemaService } from "../gen/sluice/v1/schema_pb.js";

export * from "../gen/google/type/money_pb.js";
export * from "../gen/sluice/v1/audit_pb.js";
export * from "../gen/sluice/v1/decision_pb.js";
export * from "../gen/sluice/v1/decisions_pb.js";
export * from "../gen/sluice/v1/event_pb.js";
export * from "../gen/sluice/v1/ingest_pb.js";
export * from "../gen/sluice/v1/review_pb.js";
export * from "../gen/sluice/v1/schema_pb.js";

export const AuditClient: Client<typeof AuditService>;
export const DecisionClient: Client<typeof DecisionService>;
export const IngestClient: Client<typeof IngestService>;
export const ReviewClient: Client<typeof ReviewService>;
export const SchemaClient: Client<typeof SchemaService>;

type Client<Service> =
  Service extends GenService<infer Methods>
    ? new (
        target: string,
        credentials: grpc.ChannelCredentials,
        options?: grpc.ClientOptions,
      ) => grpc.Client & { [Name in keyof Methods]: Call<Methods[Name]> }
    : never;

// The contract has these three kinds of method.
type Call<Method> = Method extends { input: infer I extends DescMessage; output: infer O extends DescMessage }
  ? Method extends { methodKind: "unary" }
    ? (
        request: MessageInitShape<I>,
        metadata: grpc.Metadata,
        options: grpc.CallOptions,
        callback: grpc.requestCallback<MessageShape<O>>,
      ) => grpc.ClientUnaryCall
    : Method extends { methodKind: "server_streaming" }
      ? (
          request: MessageInitShape<I>,
          metadata?: grpc.Metadata,
          options?: grpc.CallOptions,
        ) => grpc.ClientReadableStream<MessageShape<O>>
      : (
          metadata?: grpc.Metadata,
          options?: grpc.CallOptions,
        ) => grpc.ClientDuplexStream<MessageInitShape<I>, MessageShape<O>>
  : never;
