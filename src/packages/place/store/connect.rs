//! How a store is reached, and with which credentials: those that its library finds in the environment, or that the
//! machine or container of a cloud is given. None of them is printed.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStoreExt as _, RetryConfig};

use super::line::Line;
use super::trouble::Trouble;
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::plan::StoreName;

/// How long it is tried to get credentials that are not in the environment.
const CREDENTIALS: Duration = Duration::from_secs(15);

/// Finds the store; nothing is asked of it yet.
pub(super) fn connect(name: &StoreName) -> Result<Line> {
    // Where another part of the process has chosen already, it chose the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::io("cannot start what speaks to the store", &e))?;
    let builder = settings(name)?;
    let line = |builder: AmazonS3Builder, runtime| -> Result<Line> {
        let s3 = builder
            .build()
            .map_err(|e| Trouble::Store(e).told(&name.to_string()))?;
        Ok(Line {
            s3: Arc::new(s3),
            name: name.clone(),
            runtime,
        })
    };
    let hasty = RetryConfig {
        max_retries: 4,
        retry_timeout: CREDENTIALS,
        ..RetryConfig::default()
    };
    let asking = line(builder.clone().with_retry(hasty), runtime)?;
    let credentials = Arc::clone(asking.s3.credentials());
    found(&asking.s3, &asking)?;
    let patient = RetryConfig {
        backoff: BackoffConfig {
            max_backoff: Duration::from_secs(20),
            // The library takes a random pause up to this times the last one: so they double.
            base: 4.0,
            ..BackoffConfig::default()
        },
        max_retries: 30,
        retry_timeout: Duration::from_mins(15),
    };
    let builder = builder.with_retry(patient).with_credentials(credentials);
    line(builder, asking.runtime)
}

/// Refuses to begin without credentials, or with a store that does not answer: what goes on through minutes of outage
/// later would be minutes of waiting for a name that is wrong.
fn found(s3: &AmazonS3, line: &Line) -> Result<()> {
    let asked = line.wait(async {
        let asked = tokio::time::timeout(CREDENTIALS, s3.credentials().get_credential()).await;
        asked.map_or(Ok(false), |found| Ok(found.is_ok()))
    });
    match asked {
        Ok(true) => answers(s3, line),
        Err(Trouble::Interrupted) => interrupt::check("nothing was changed"),
        _ => {
            let what = format!("{}: there are no credentials", line.name);
            Err(Failure::new(Exit::Failed, what).hint(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a machine or container that is given some",
            ))
        }
    }
}

/// Asks for an object; that it is not there, or not to be seen, is an answer.
fn answers(s3: &AmazonS3, line: &Line) -> Result<()> {
    let path = line.path("manifest")?;
    match line.wait(s3.head(&path)) {
        Err(trouble @ (Trouble::Interrupted | Trouble::Store(Error::Generic { .. }))) => {
            Err(trouble.told(&format!("{}: cannot be reached", line.name)))
        }
        _ => Ok(()),
    }
}

fn settings(name: &StoreName) -> Result<AmazonS3Builder> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&name.bucket);
    if let Some(region) = &name.region {
        builder = builder.with_region(region);
    }
    let of_store = AmazonS3ConfigKey::S3Endpoint;
    let general = AmazonS3ConfigKey::Endpoint;
    let set = |builder: &AmazonS3Builder, key| {
        builder
            .get_config_value(key)
            .filter(|value| !value.is_empty())
    };
    let endpoint = name.endpoint.clone();
    let endpoint = endpoint
        .or_else(|| set(&builder, &of_store))
        .or_else(|| set(&builder, &general));
    let allow = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
    let asked = set(&builder, &allow).is_some_and(|value| value == "true");
    if let Some(endpoint) = endpoint {
        let plain = name.may_be_plain(&endpoint, asked)?;
        builder = builder
            .with_config(of_store, endpoint)
            .with_allow_http(plain);
    }
    // A request that goes on is not cut off: a part may take minutes over a slow line.
    let client = |key| AmazonS3ConfigKey::Client(key);
    Ok(builder
        .with_config(client(ClientConfigKey::ConnectTimeout), "10 seconds")
        .with_config(client(ClientConfigKey::ReadTimeout), "5 minutes")
        .with_config(client(ClientConfigKey::Timeout), "30 minutes"))
}
