//! What the tests of packages in a store need: a server that speaks S3 and keeps its objects in a folder (the crate
//! `s3s-fs`), and a line to it that fails now and then.

mod line;
mod uploads;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use self::line::Line;
use self::uploads::{Step, Uploads};

/// A server on the loopback interface, until it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the folder `root`, in which each folder is a bucket, to whoever has this key.
    ///
    /// # Errors
    ///
    /// The folder is not there, or there is no port.
    pub fn start(root: &Path, (id, secret): (&str, &str)) -> io::Result<Self> {
        let files = FileSystem::new(root).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(id, secret));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let uploads = Arc::new(Uploads::new(root));
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, service, uploads) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service, uploads: Arc<Uploads>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let (service, uploads) = (service.clone(), Arc::clone(&uploads));
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, uploads) = (service.clone(), Arc::clone(&uploads));
            async move {
                let step = Step::of(request.method(), request.uri());
                let mut answer = service.call(request.map(Into::into)).await?;
                if let Some(step) = step
                    && uploads.is_gone(&step, answer.status())
                {
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                }
                Ok::<_, s3s::HttpError>(answer)
            }
        });
        let served = http1::Builder::new().serve_connection(TokioIo::new(socket), answer);
        tokio::spawn(async move {
            // A client that goes away is none of the server's business.
            let _ = served.await;
        });
    }
}
