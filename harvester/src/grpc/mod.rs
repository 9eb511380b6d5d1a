//! The wire: gRPC services over one listener, each call identified, bounded, and turned into the core's types.
//!
//! Started by [`crate::daemon`]. Generated types end in this folder. Hostile input is refused with the field's name; it
//! costs a bounded amount of memory and time, and never a panic.

mod admin;
pub(crate) mod auth;
mod cluster;
mod connections;
mod convert;
mod executors;
mod leases;

use std::{future::Future, sync::Arc, time::Instant};

use gleaner_lease::token::SigningKey;
use gleaner_proto::v1::{
    self, admin_server::AdminServer, cluster_server::ClusterServer,
    executors_server::ExecutorsServer, leases_server::LeasesServer,
};
use tokio::net::TcpListener;
use tonic::{Status, transport::Server};

use crate::{
    driver::Handle,
    store::Store,
    tune::{
        EXECUTOR_MESSAGE_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, METADATA_BYTES_MAX,
        REQUEST_BYTES_MAX, STREAMS_A_CONNECTION,
    },
};
use auth::Authenticator;

/// What every service needs; one a daemon.
pub(crate) struct Service {
    pub(crate) auth: Authenticator,
    pub(crate) driver: Handle,
    pub(crate) store: Store,
    pub(crate) key: SigningKey,
    pub(crate) cluster: String,
    /// Who may register nodes besides root.
    pub(crate) executor_uid: Option<u32>,
    pub(crate) began: Instant,
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors of this build cannot be shown.
    #[error("the reflection service cannot be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Serving failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until `stop` is done, then ends open unary calls in order.
pub(crate) async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LeasesServer<Service>>().await;
    health.set_serving::<ClusterServer<Service>>().await;
    health.set_serving::<AdminServer<Service>>().await;
    health.set_serving::<ExecutorsServer<executors::Uplink>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let executors = ExecutorsServer::new(executors::Uplink(Arc::clone(&service)))
        .max_decoding_message_size(EXECUTOR_MESSAGE_BYTES_MAX);
    let leases = LeasesServer::from_arc(Arc::clone(&service));
    let cluster = ClusterServer::from_arc(Arc::clone(&service));
    let admin = AdminServer::from_arc(service);
    Server::builder()
        .max_concurrent_streams(STREAMS_A_CONNECTION)
        .concurrency_limit_per_connection(STREAMS_A_CONNECTION as usize)
        .http2_max_header_list_size(METADATA_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(executors)
        .add_service(leases.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(cluster.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(admin.max_decoding_message_size(REQUEST_BYTES_MAX))
        .serve_with_incoming_shutdown(connections::accept(listener), stop)
        .await?;
    Ok(())
}

/// The core answered a call with another call's answer.
fn crossed() -> Status {
    Status::internal("the harvester's core gave another call's answer: please report this")
}
