//! The daemon in this process: real SQLite, real gRPC over loopback, real munge credentials; Slurm alone is in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use gleaner_proto::v1;
use support::{World, client::one_lease, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_leases_a_granted_node_and_gives_it_back() {
    let world = World::start(&["n1"]).await;
    let (client, executor) = (world.client().await, world.executor("n1").await);
    let grant = executor.granted().await;
    assert_eq!((grant.cores, grant.grant_epoch), (4, executor.registered.grant_epoch));
    let leases = client.acquire(one_lease(2)).await.unwrap().leases;
    let [lease] = leases.as_slice() else { panic!("{leases:?}") };
    assert_eq!((lease.node.as_str(), lease.cores), ("n1", 2));
    let key = (&*executor.registered.harvester_public_key).try_into().unwrap();
    let key = gleaner_lease::token::VerifyingKey::from_bytes(key).unwrap();
    let claims = gleaner_lease::token::verify_signature(&lease.token, &key).unwrap();
    assert_eq!(claims.lease.0, lease.lease_id);
    let live = client.list_leases(v1::ListLeasesRequest::default()).await.unwrap().leases;
    assert_eq!(live.len(), 1);
    let released = client.release(v1::ReleaseRequest { lease_ids: vec![lease.lease_id] }).await;
    assert_eq!(released.unwrap().released, [lease.lease_id]);
    eventually("the executor is told", async || {
        executor.told().revoked.contains(&lease.lease_id).then_some(())
    })
    .await;
}
