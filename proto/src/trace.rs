//! Where the work of the present task stands in a trace. Requests that are made in it carry that in their metadata.

use graftwork_shared::trace::TraceContext;

tokio::task_local! {
    static CONTEXT: TraceContext;
}

/// Does some work there.
pub async fn traced<T>(context: TraceContext, work: impl Future<Output = T>) -> T {
    CONTEXT.scope(context, work).await
}

/// Where the present task stands, if anywhere.
pub fn trace_context() -> Option<TraceContext> {
    CONTEXT.try_with(|context| *context).ok()
}
