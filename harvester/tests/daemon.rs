//! The daemon in this process: real SQLite, real gRPC over loopback, real munge credentials; Slurm alone is in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::time::Duration;

use gleaner_harvester_core::picture::NodeState;
use gleaner_proto::v1::{self, from_executor::Message};
use support::{
    World,
    client::one_lease,
    disk::{Disk, FailingDisk},
    eventually,
    executor::register,
    idle_node,
};
use tokio_stream::StreamExt;
use tonic::Code;

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
    let reason = v1::EndReason::Released.into();
    let ended = v1::LeaseEnded { lease_id: lease.lease_id, reason, ..Default::default() };
    executor.send(1, Message::LeaseEnded(ended)).await;
    eventually("the event is stored", async || (executor.told().acked == 1).then_some(())).await;
    let all = client.list_leases(v1::ListLeasesRequest { ended: true, limit: 0 }).await.unwrap();
    assert_eq!(all.leases.len(), 1);
    assert_eq!(all.leases[0].end_reason(), v1::EndReason::Released);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_gets_the_same_leases() {
    let world = World::start(&["n1"]).await;
    let (client, executor) = (world.client().await, world.executor("n1").await);
    executor.granted().await;
    let request = one_lease(1);
    let first = client.acquire(request.clone()).await.unwrap();
    let second = client.acquire(request).await.unwrap();
    assert_eq!(first.leases[0].lease_id, second.leases[0].lease_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_slurms_eyes_vacates_the_node() {
    let world = World::start(&["n1"]).await;
    let executor = world.executor("n1").await;
    executor.granted().await;
    let mut busy = idle_node("n1");
    (busy.state, busy.alloc_cpus) = (NodeState::parse("ALLOCATED"), 4);
    world.slurm.set_nodes(vec![busy]);
    let vacate =
        eventually("the executor is told to leave", async || executor.told().vacated).await;
    assert_eq!(vacate.reason(), v1::EndReason::BatchJob);
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_forged_and_foreign_credentials_are_refused_and_audited() {
    use gleaner_proto::{credential::request_digest, v1::leases_client::LeasesClient};
    use support::{Munged, client::with_credential};
    let world = World::start(&[]).await;
    let client = world.client().await;
    let request = v1::ReleaseRequest { lease_ids: vec![1] };
    let digest = request_digest("Leases/Release", &request);
    let send = async |credential: &str, request: &v1::ReleaseRequest| {
        let mut service = LeasesClient::new(client.channel.clone());
        service.release(with_credential(request.clone(), credential)).await.map(drop)
    };
    let refused = |result: Result<(), tonic::Status>, words: &str| {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains(words), "{}", status.message());
    };
    let credential = client.authority.sign(&digest, None).unwrap();
    send(&credential, &request).await.unwrap();
    refused(send(&credential, &request).await, "used before");
    let forged = Munged::start(8).authority().sign(&digest, None).unwrap();
    refused(send(&forged, &request).await, "forged");
    let taken = client.authority.sign(&digest, None).unwrap();
    let other = v1::ReleaseRequest { lease_ids: vec![2] };
    refused(send(&taken, &other).await, "another message");
    refused(send("nonsense", &request).await, "forged or damaged");
    let database = world.database();
    let lines = eventually("refusals are in the audit trail", async || {
        let lines = support::audits(&database).await;
        (lines.len() == 4).then_some(lines)
    })
    .await;
    assert!(lines.iter().all(|(action, _)| action == "Leases/Release"), "{lines:?}");
    assert!(lines[0].1.contains("used before"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_version_is_refused_by_name() {
    use gleaner_proto::{credential::PROTOCOL_KEY, v1::cluster_client::ClusterClient};
    let world = World::start(&[]).await;
    let client = world.client().await;
    let mut service = ClusterClient::new(client.channel.clone());
    let mut request = client.signed([0; 32], v1::GetStatusRequest {});
    request.metadata_mut().insert(PROTOCOL_KEY, 9.into());
    let status = service.get_status(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("protocol 9"), "{}", status.message());
    let unsigned = tonic::Request::new(v1::GetStatusRequest {});
    assert_eq!(service.get_status(unsigned).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_neither_register_nor_administer() {
    use gleaner_proto::{
        credential::{register_digest, request_digest},
        v1::{admin_client::AdminClient, executors_client::ExecutorsClient, to_executor},
    };
    use support::{client::with_credential, sign_as_nobody};
    let world = World::start(&["n1"]).await;
    let client = world.client().await;
    let request = v1::SwitchOffRequest { reason: "mine".into() };
    let digest = request_digest("Admin/SwitchOff", &request);
    let Some(credential) = sign_as_nobody(&world.munged, &digest) else { return };
    let mut admin = AdminClient::new(client.channel.clone());
    let status = admin.switch_off(with_credential(request, &credential)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(!client.get_status(v1::GetStatusRequest {}).await.unwrap().switched_off);
    let lines = support::audits(&world.database()).await;
    assert!(lines.iter().any(|(_, outcome)| outcome.contains("administrator")), "{lines:?}");

    let register = register("n1");
    let credential = sign_as_nobody(&world.munged, &register_digest(&register)).unwrap();
    let first = v1::FromExecutor { event_seq: 0, message: Some(Message::Register(register)) };
    let stream =
        with_credential(tokio_stream::iter([first]).chain(tokio_stream::pending()), &credential);
    let mut executors = ExecutorsClient::new(client.channel.clone());
    let mut replies = executors.join(stream).await.unwrap().into_inner();
    let reply = replies.message().await.unwrap().unwrap().message;
    let Some(to_executor::Message::Refused(refused)) = reply else { panic!("{reply:?}") };
    assert!(refused.reason.contains("root or the executor user"), "{}", refused.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_end_their_own_stream_alone() {
    let world = World::start(&["n1", "n2"]).await;
    let honest = world.executor("n1").await;
    honest.granted().await;
    let mut short_key = register("n2");
    short_key.executor_public_key = vec![1; 31].into();
    let mut bad_name = register("n2");
    bad_name.node = "../n2".into();
    let mut endless = register("n2");
    endless.address = "a".repeat(100_000);
    for bad in [short_key, bad_name, endless] {
        let authority = world.munged.authority();
        let refused = support::executor::open(world.address(), &authority, bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let vacated = v1::Vacated { trigger: 99, ..Default::default() };
    let ended = v1::LeaseEnded { reason: -5, ..Default::default() };
    let twice = register("n2");
    let huge = v1::LeaseEnded { detail: "x".repeat(1 << 20), ..Default::default() };
    for bad in [
        Message::Vacated(vacated),
        Message::LeaseEnded(ended),
        Message::Register(twice),
        Message::LeaseEnded(huge),
    ] {
        let hostile = world.executor("n2").await;
        hostile.send(1, bad).await;
        eventually("the stream ends", async || hostile.told().ended).await;
    }
    let mut request = one_lease(1);
    request.request_id = vec![1; 3].into();
    let client = world.client().await;
    assert_eq!(client.acquire(request).await.unwrap_err().code(), Code::InvalidArgument);
    let mut request = one_lease(u32::MAX);
    (request.nodes_min, request.nodes_max) = (u32::MAX, u32::MAX);
    (request.memory_bytes, request.ttl_ms) = (u64::MAX, u64::MAX);
    client.acquire(request).await.unwrap_err();
    client.acquire(one_lease(1)).await.unwrap();
    assert!(honest.told().ended.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_leases_and_no_vacate() {
    let Some(disk) = Disk::mount(16 << 20) else { return };
    let database = disk.file("gleaner.db");
    let world =
        World::start_with(&["n1"], |config| config.harvester.database = Some(database)).await;
    let (client, executor) = (world.client().await, world.executor("n1").await);
    executor.granted().await;
    client.acquire(one_lease(1)).await.unwrap();
    disk.fill();
    let status =
        eventually("leases are refused", async || client.acquire(one_lease(1)).await.err()).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("store"), "{}", status.message());
    let shown = client.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert!(shown.store_error.contains("full"), "{}", shown.store_error);
    let drain = v1::DrainRequest { nodelist: "n1".into(), reason: "test".into() };
    assert_eq!(client.drain(drain).await.unwrap().nodes, ["n1"]);
    eventually("the node is vacated all the same", async || executor.told().vacated).await;
    let record = v1::Vacated {
        trigger: v1::Trigger::Drain.into(),
        grant_epoch: executor.registered.grant_epoch,
        record_id: vec![3; 16].into(),
        unix_ms: i64::MAX,
        ..Default::default()
    };
    executor.send(1, Message::Vacated(record)).await;
    eventually("its record is safe in the journal", async || {
        (executor.told().acked == 1).then_some(())
    })
    .await;
    disk.empty();
    eventually("records are stored again", async || {
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
        status.store_error.is_empty().then_some(())
    })
    .await;
    let resume = v1::ResumeRequest { nodelist: "n1".into() };
    client.resume(resume).await.unwrap();
    eventually("leases are given again", async || client.acquire(one_lease(1)).await.ok()).await;
}

/// The journal lies on the same disk, as by default: nothing at all can be stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_stops_leases_and_neither_grants_nor_vacates() {
    let Some(disk) = FailingDisk::mount(64 << 20) else { return };
    let state_dir = disk.file("state");
    let world = World::start_with(&["n1"], |config| config.harvester.state_dir = state_dir).await;
    let (client, executor) = (world.client().await, world.executor("n1").await);
    executor.granted().await;
    let lease = client.acquire(one_lease(1)).await.unwrap().leases[0].lease_id;
    disk.turn_read_only();
    let status =
        eventually("leases are refused", async || client.acquire(one_lease(1)).await.err()).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("can be written"), "no remedy: {}", status.message());
    let named = async || {
        let shown = client.get_status(v1::GetStatusRequest {}).await.unwrap().store_error;
        assert!(!shown.is_empty(), "a try that wrote nothing counted");
        (shown.contains("readonly") && shown.contains("can be written")).then_some(())
    };
    eventually("the status names cause and remedy", named).await;
    let answered = executor.granted().await.answers_seq;
    eventually("heartbeats are answered by grants", async || {
        (executor.granted().await.answers_seq > answered + 2).then_some(())
    })
    .await;
    let live = client.list_leases(v1::ListLeasesRequest::default()).await.unwrap().leases;
    assert_eq!(live.iter().map(|lease| lease.lease_id).collect::<Vec<_>>(), [lease]);
    let mut busy = idle_node("n1");
    (busy.state, busy.alloc_cpus) = (NodeState::parse("ALLOCATED"), 4);
    world.slurm.set_nodes(vec![busy]);
    eventually("the node is vacated all the same", async || executor.told().vacated).await;
    let record = v1::Vacated {
        trigger: v1::Trigger::Poll.into(),
        grant_epoch: executor.registered.grant_epoch,
        record_id: vec![3; 16].into(),
        unix_ms: i64::MAX,
        ..Default::default()
    };
    executor.send(1, Message::Vacated(record)).await;
    client.acquire(one_lease(1)).await.unwrap_err();
    assert_eq!(executor.told().acked, 0, "the executor was told to forget what is stored nowhere");
    disk.replace();
    eventually("its record is stored", async || (executor.told().acked == 1).then_some(())).await;
    let shown = client.get_status(v1::GetStatusRequest {}).await.unwrap().store_error;
    assert_eq!(shown, "", "it is stored");
    world.slurm.set_nodes(vec![idle_node("n1")]);
    eventually("leases are given again", async || client.acquire(one_lease(1)).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_munged_refuses_calls_in_time_and_recovers() {
    let world = World::start(&[]).await;
    let client = world.client().await;
    let request = v1::GetStatusRequest {};
    let digest = gleaner_proto::credential::request_digest("Cluster/GetStatus", &request);
    let call = client.signed(digest, request);
    world.munged.process().stop();
    let mut service = v1::cluster_client::ClusterClient::new(client.channel.clone());
    let refused = tokio::time::timeout(Duration::from_secs(8), service.get_status(call)).await;
    assert_eq!(refused.unwrap().unwrap_err().code(), Code::Unavailable);
    world.munged.process().cont();
    client.get_status(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_slurm_does_not_have_is_named() {
    let world = World::start_with(&["n1"], |config| {
        config.policy.partitions.push("nonesuch".into());
    })
    .await;
    let client = world.client().await;
    let warnings = eventually("the first picture is judged", async || {
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
        (!status.warnings.is_empty()).then_some(status.warnings)
    })
    .await;
    assert!(warnings[0].contains("nonesuch"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_and_starts_knows_its_leases() {
    let world = World::start(&["n1"]).await;
    let (client, executor) = (world.client().await, world.executor("n1").await);
    executor.granted().await;
    let lease = client.acquire(one_lease(1)).await.unwrap().leases[0].lease_id;
    let World { directory: _directory, munged, slurm, config, daemon } = world;
    daemon.stop().await;
    let daemon = gleaner_harvester::daemon::Daemon::start(&config, slurm).await.unwrap();
    let client = support::client::Client::connect(daemon.address(), munged.authority()).await;
    let live = client.list_leases(v1::ListLeasesRequest::default()).await.unwrap().leases;
    assert_eq!(live.iter().map(|lease| lease.lease_id).collect::<Vec<_>>(), [lease]);
    assert_eq!(client.get_status(v1::GetStatusRequest {}).await.unwrap().term, 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let world = World::start(&[]).await;
    let channel = world.client().await.channel;
    let service = "gleaner.v1.Leases".to_owned();
    let reply = HealthClient::new(channel).check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(reply.into_inner().status, 1);
}

#[tokio::test]
async fn single_user_mode_stays_on_loopback_whoever_made_the_configuration() {
    use gleaner_harvester::daemon::{Daemon, StartError};
    let directory = tempfile::tempdir().unwrap();
    let mut config = support::config(directory.path(), None);
    config.cluster.auth = gleaner_config::Auth::SingleUser;
    config.harvester.listen = "0.0.0.0:0".parse().unwrap();
    let slurm = gleaner_harvester::slurm::fake::Fake::default();
    let refused = Daemon::start(&config, slurm).await.unwrap_err();
    assert!(matches!(refused, StartError::Loopback(_)), "{refused}");
}
