#!/usr/bin/env python3
"""A receiver of OTLP over gRPC: says its port on the first line, then each span on a line of its own as JSON."""
import json
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc


class Receiver(rpc.TraceServiceServicer):
    def Export(self, request, _context):
        for of_resource in request.resource_spans:
            about = {item.key: item.value.string_value for item in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    print(json.dumps({
                        "service": about["service.name"],
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        "attributes": {item.key: item.value.string_value for item in span.attributes},
                        "error": span.status.message,
                    }), flush=True)
        return service.ExportTraceServiceResponse()


server = grpc.server(futures.ThreadPoolExecutor(4))
rpc.add_TraceServiceServicer_to_server(Receiver(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
# Ends with whoever started it.
sys.stdin.read()
