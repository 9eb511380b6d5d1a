//! A client and admin over the real wire: credentials on requests, checked on replies.

use std::net::SocketAddr;

use gleaner_identity::{Authority, Via};
use gleaner_proto::{
    PROTOCOL,
    credential::{CREDENTIAL_KEY, PROTOCOL_KEY, reply_digest, request_digest},
    v1::{
        self, admin_client::AdminClient, cluster_client::ClusterClient, leases_client::LeasesClient,
    },
};
use prost::Message;
use tonic::{Request, Response, Status, transport::Channel};

#[derive(Clone)]
pub struct Client {
    pub channel: Channel,
    pub authority: Authority,
    pub address: SocketAddr,
}

macro_rules! calls {
    ($($call:ident: $service:ident $method:literal $request:ty => $reply:ty;)*) => {
        $(pub async fn $call(&self, request: $request) -> Result<$reply, Status> {
            let digest = request_digest($method, &request);
            let mut client = $service::new(self.channel.clone());
            let response = client.$call(self.signed(digest, request)).await?;
            Ok(self.checked(&digest, response))
        })*
    };
}

impl Client {
    pub async fn connect(address: SocketAddr, authority: Authority) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        Self { channel: endpoint.connect().await.unwrap(), authority, address }
    }

    calls! {
        acquire: LeasesClient "Leases/Acquire" v1::AcquireRequest => v1::AcquireReply;
        release: LeasesClient "Leases/Release" v1::ReleaseRequest => v1::ReleaseReply;
        get_status: ClusterClient "Cluster/GetStatus" v1::GetStatusRequest => v1::Status;
        list_nodes: ClusterClient "Cluster/ListNodes" v1::ListNodesRequest => v1::ListNodesReply;
        list_leases: ClusterClient "Cluster/ListLeases" v1::ListLeasesRequest => v1::ListLeasesReply;
        get_report: ClusterClient "Cluster/GetReport" v1::GetReportRequest => v1::Report;
        drain: AdminClient "Admin/Drain" v1::DrainRequest => v1::DrainReply;
        resume: AdminClient "Admin/Resume" v1::ResumeRequest => v1::ResumeReply;
        switch_off: AdminClient "Admin/SwitchOff" v1::SwitchOffRequest => v1::SwitchReply;
        switch_on: AdminClient "Admin/SwitchOn" v1::SwitchOnRequest => v1::SwitchReply;
    }

    pub fn signed<T>(&self, digest: [u8; 32], request: T) -> Request<T> {
        with_credential(request, &self.authority.sign(&digest, None).unwrap())
    }

    /// The reply, once the harvester's word on it is found good.
    pub fn checked<T: Message>(&self, request: &[u8; 32], response: Response<T>) -> T {
        let credential = response.metadata().get(CREDENTIAL_KEY).unwrap().to_str().unwrap();
        let digest = reply_digest(request, response.get_ref());
        let via = Via::Dialled { server: self.address };
        let harvester = self.authority.verify(credential, &digest, via).unwrap();
        assert_eq!(harvester.uid, nix::unistd::geteuid().as_raw());
        response.into_inner()
    }
}

pub fn with_credential<T>(message: T, credential: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(PROTOCOL_KEY, PROTOCOL.into());
    request.metadata_mut().insert(CREDENTIAL_KEY, credential.parse().unwrap());
    request
}

/// A request for one lease of `cores` cores; each call is another request.
pub fn one_lease(cores: u32) -> v1::AcquireRequest {
    let mut request_id = [0; 16];
    getrandom::fill(&mut request_id).unwrap();
    v1::AcquireRequest {
        request_id: request_id.to_vec().into(),
        client_public_key: vec![9; 32].into(),
        nodes_min: 1,
        nodes_max: 1,
        cores,
        memory_bytes: 64 << 20,
        ttl_ms: 60_000,
        partition: String::new(),
        account: String::new(),
        avoid_nodes: Vec::new(),
    }
}
