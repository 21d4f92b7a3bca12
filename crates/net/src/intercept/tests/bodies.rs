//! Bodies, and what becomes of connections.

use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn bodies_arrive_whole_in_both_directions() {
    let (web, interceptor) = site(BOTH).await;
    let bytes: Bytes =
        (0..8 * 1024 * 1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for protocols in [&[HTTP_1][..], BOTH] {
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let request = guest.request("/echo").method("POST").body(whole(bytes.clone())).expect("a request");
        let response = guest.send(request).await.expect("a response");
        let echoed = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(echoed == bytes, "{} bytes", echoed.len());
    }
}

#[tokio::test]
async fn a_guest_that_does_not_read_holds_the_server_up() {
    for protocols in [&[HTTP_1][..], BOTH] {
        let (web, interceptor) = site(BOTH).await;
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let request = guest.request("/endless").body(empty()).expect("a request");
        let response = guest.send(request).await.expect("a response");
        // It has come to a stop once nothing more was sent for a while.
        let mut before = 0;
        let stopped = async {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let now = web.sent_bytes.load(Ordering::Relaxed);
                if now == before && now > 0 {
                    break now;
                }
                before = now;
            }
        };
        let sent = tokio::time::timeout(DEADLINE, stopped).await.expect("it stops");
        // Ours, and what kernels and both libraries hold.
        assert!(sent < 16 * 1024 * 1024, "{sent} bytes");
        // Whoever reads on gets more.
        let mut body = response.into_body();
        let mut read = 0;
        while read <= sent {
            let frame = body.frame().await.expect("more").expect("a frame");
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        // Who leaves takes the server's connection along.
        drop((body, guest.client));
        tokio::time::timeout(DEADLINE, web.ended.notified()).await.expect("the server's connection ends");
        guest.served.abort();
    }
}

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let (web, interceptor) = site(BOTH).await;
    let key = interceptor.secrets()[0].placeholder().to_owned();
    // Whoever offers both must be able to speak HTTP/1.1 for it.
    let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
    let request = guest.request("/upgrade").header(CONNECTION, "Upgrade").header(UPGRADE, "websocket");
    let request = request.header("authorization", &key).header("sec-websocket-version", "13");
    let response = guest.send(request.body(empty()).expect("a request")).await.expect("a response");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in [(UPGRADE, "websocket"), (CONNECTION, "upgrade")] {
        let values: Vec<_> = response.headers().get_all(name).iter().collect();
        assert_eq!(values, [value]);
    }
    let mut upgraded = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    for text in ["hello", &key, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"] {
        upgraded.write_all(text.as_bytes()).await.expect("written");
        let mut echoed = vec![0; text.len()];
        upgraded.read_exact(&mut echoed).await.expect("echoed");
        assert_eq!(String::from_utf8(echoed).expect("text"), text);
    }
    let [seen] = &web.seen()[..] else { panic!("one request") };
    assert_eq!(header(seen, "authorization"), [VALUE]);
    assert_eq!(header(seen, "sec-websocket-version"), ["13"]);
    upgraded.shutdown().await.expect("shut down");
    assert_eq!(upgraded.read_to_end(&mut Vec::new()).await.expect("the end"), 0);
    tokio::time::timeout(DEADLINE, guest.served)
        .await
        .expect("it ends")
        .expect("served")
        .expect("to its end");
}

#[tokio::test]
async fn a_server_that_closes_closes_the_guests_connection() {
    let (web, interceptor) = site(BOTH).await;
    let mut guest = Guest::connect(&web, &interceptor, &[HTTP_1]).await;
    let request = guest.request("/close").body(empty()).expect("a request");
    let response = guest.send(request).await.expect("a response");
    assert_eq!(response.headers().get(CONNECTION), Some(&HeaderValue::from_static("close")));
    assert_eq!(text(response).await, (StatusCode::OK, "hello".into()));
    let served = tokio::time::timeout(DEADLINE, guest.served).await.expect("it ends");
    served.expect("served").expect("to its end");
}

#[tokio::test]
async fn who_stops_serving_closes_both_sides() {
    for protocols in [&[HTTP_1][..], BOTH] {
        let (web, interceptor) = site(BOTH).await;
        let mut guest = Guest::connect(&web, &interceptor, protocols).await;
        let request = guest.request("/endless").body(empty()).expect("a request");
        let response = guest.send(request).await.expect("a response");
        guest.served.abort();
        tokio::time::timeout(DEADLINE, web.ended.notified()).await.expect("the server's connection ends");
        let rest = tokio::time::timeout(DEADLINE, response.into_body().collect()).await.expect("it ends");
        assert!(rest.is_err(), "the body was cut");
    }
}

#[tokio::test]
async fn who_stops_serving_leaves_nothing_that_waits_for_a_server() {
    // In HTTP/2, where tasks of their own carry bodies; a server of HTTP/1.1 that does not read would not notice.
    let (web, interceptor) = site(BOTH).await;
    let mut guest = Guest::connect(&web, &interceptor, BOTH).await;
    let served = guest.served.abort_handle();
    let request = guest.request("/stall").method("POST").body(whole(vec![b'x'; 4 * 1024 * 1024]));
    let sending = tokio::spawn(async move { guest.send(request.expect("a request")).await.map(drop) });
    let arrived = async {
        while web.seen().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, arrived).await.expect("the request arrives");
    served.abort();
    tokio::time::timeout(DEADLINE, web.ended.notified()).await.expect("the server's connection ends");
    tokio::time::timeout(DEADLINE, sending).await.expect("it ends").expect("sent").expect_err("cut");
}
