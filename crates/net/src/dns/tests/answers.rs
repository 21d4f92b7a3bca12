//! Answers: what is in them, and in what form.

use super::*;

#[tokio::test]
async fn an_answer_is_pinned_before_it_is_given_and_lasts_as_long() {
    for (said_s, given_s) in [(0, 30), (29, 30), (60, 60), (3600, 3600), (3601, 3600), (u32::MAX, 3600)] {
        let upstream = Scripted::start(move |asked, _| {
            let record = format!("a.example {said_s} A 93.184.215.14");
            vec![bytes(&answered(asked, &[&record]))]
        });
        let upstream = upstream.await;
        let site = Site::new(&[&upstream], Policy::default());
        assert!(site.pinned("93.184.215.14").is_empty());
        let (reply, refusal) = site.ask("a.example", RecordType::A).await;
        assert_eq!((addresses(&reply), refusal), (vec!["93.184.215.14".into()], None));
        assert_eq!(reply.answers[0].ttl, given_s, "{said_s}");
        assert_eq!(site.pinned("93.184.215.14"), ["a.example"]);
        let late = Instant::now() + Duration::from_secs(given_s.into()) - Duration::from_secs(1);
        let names = site.names.lock().unwrap();
        assert_eq!(names.of("93.184.215.14".parse().expect("an address"), late).len(), 1, "{said_s}");
    }
}

#[tokio::test]
async fn aliases_are_passed_on_and_the_name_that_was_asked_for_is_pinned() {
    let upstream = Scripted::of_records(&[
        "edge.cdn.example 20 A 93.184.215.14",
        "evil.example 60 A 93.184.215.66",
        "www.a.example 300 CNAME a.cdn.example",
        "a.cdn.example 90 CNAME edge.cdn.example",
        "www.a.example 300 TXT smuggled",
    ]);
    let site = Site::new(&[&upstream.await], policy(&["*.a.example"], &[]));
    let (reply, _) = site.ask("Www.A.Example", RecordType::A).await;
    let shown: Vec<_> = reply.answers.iter().map(|record| (record.name.to_ascii(), record.ttl)).collect();
    let expected = [("Www.A.Example.", 30), ("a.cdn.example.", 30), ("edge.cdn.example.", 30)];
    assert_eq!(shown, expected.map(|(name, ttl)| (name.to_owned(), ttl)));
    assert_eq!(site.pinned("93.184.215.14"), ["www.a.example"]);
    assert!(site.pinned("93.184.215.66").is_empty());
}

#[tokio::test]
async fn an_answer_is_ours_and_has_nothing_in_it_that_was_not_asked_for() {
    let upstream = Scripted::start(|asked, _| {
        let mut answer = answered(asked, &["a.example 60 A 93.184.215.14", "b.example 60 A 93.184.215.15"]);
        answer.metadata.authoritative = true;
        answer.metadata.authentic_data = true;
        answer.add_authority(record("example 60 A 93.184.215.16"));
        answer.add_additional(record("ns.example 60 A 93.184.215.17"));
        let mut edns = Edns::new();
        edns.options_mut()
            .insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65_001, b"smuggled".to_vec()));
        answer.set_edns(edns);
        vec![bytes(&answer)]
    });
    let site = Site::new(&[&upstream.await], Policy::default());
    let (reply, _) = site.ask("a.example", RecordType::A).await;
    let mut expected = question("a.example", RecordType::A);
    expected.metadata.message_type = MessageType::Response;
    expected.metadata.recursion_available = true;
    expected.add_answer(record("a.example 60 A 93.184.215.14"));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    expected.set_edns(edns);
    assert_eq!(reply, expected);
    // Without EDNS there is none.
    let (reply, _) = site.put(&question("a.example", RecordType::A), Transport::Udp).await;
    assert_eq!(reply.edns, None);
}

#[tokio::test]
async fn there_is_no_such_name_where_there_is_none() {
    let upstream = Scripted::start(|asked, _| vec![bytes(&failed(asked, ResponseCode::NXDomain))]).await;
    let site = Site::new(&[&upstream], Policy::default());
    let (reply, refusal) = site.ask("a.example", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, refusal), (ResponseCode::NXDomain, None));
    assert_eq!(extended(&reply), None);
}

#[tokio::test]
async fn records_of_other_types_are_passed_on() {
    let upstream = Scripted::of_records(&["a.example 60 MX mail.a.example", "a.example 60 TXT v=spf1"]);
    let site = Site::new(&[&upstream.await], Policy::default());
    for (kind, expected) in
        [(RecordType::MX, "a.example 60 MX mail.a.example"), (RecordType::TXT, "a.example 60 TXT v=spf1")]
    {
        let (reply, _) = site.ask("a.example", kind).await;
        assert_eq!(reply.answers, [record(expected)]);
    }
}

#[tokio::test]
async fn types_that_tell_other_ways_are_not_asked_for() {
    let upstream = Scripted::of_records(&[]).await;
    let site = Site::new(&[&upstream], Policy::default());
    for kind in [
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::ANY,
        RecordType::AXFR,
        RecordType::DNSKEY,
        RecordType::NULL,
        RecordType::NAPTR,
        RecordType::Unknown(65_280),
    ] {
        let (reply, _) = site.ask("a.example", kind).await;
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    assert_eq!(upstream.asked().len(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_asked_for_over_tcp() {
    let upstream = Scripted::start(|asked, transport| {
        let records: Vec<_> = (1..=60).map(|last| format!("a.example 60 A 93.184.215.{last}")).collect();
        let mut answer = answered(asked, &records.iter().map(String::as_str).collect::<Vec<_>>());
        if transport == Transport::Udp {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        vec![bytes(&answer)]
    });
    let site = Site::new(&[&upstream.await], Policy::default());
    let mut asked = question("a.example", RecordType::A);
    // A header, the question, and 60 records of 16 bytes.
    let whole = 12 + 15 + 60 * 16;
    for (announced, whole_fits) in
        [(None, false), (Some(600), false), (Some(whole + 10), false), (Some(whole + 11), true)]
    {
        if let Some(announced) = announced {
            let mut edns = Edns::new();
            edns.set_max_payload(announced);
            asked.set_edns(edns);
        }
        let answer = site.server.answer(&bytes(&asked), Transport::Udp).await.expect("an answer");
        assert!(answer.bytes.len() <= announced.unwrap_or(512).into());
        let reply = Message::from_vec(&answer.bytes).expect("a message");
        let expected = if whole_fits { 60 } else { 0 };
        assert_eq!(
            (reply.metadata.truncation, reply.answers.len()),
            (!whole_fits, expected),
            "{announced:?}"
        );
    }
    let (reply, _) = site.put(&question("a.example", RecordType::A), Transport::Tcp).await;
    assert_eq!((reply.metadata.truncation, reply.answers.len()), (false, 60));
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_not_answered() {
    let upstream = Scripted::of_records(&[]).await;
    let site = Site::new(&[&upstream], Policy::default());
    assert_eq!(site.server.answer(&[], Transport::Udp).await, None);
    let mut answer = question("a.example", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    assert_eq!(site.server.answer(&bytes(&answer), Transport::Udp).await, None);
    let mut update = question("a.example", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let mut chaos = question("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    let mut future = question("a.example", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    for (message, code) in
        [(update, ResponseCode::NotImp), (chaos, ResponseCode::Refused), (future, ResponseCode::BADVERS)]
    {
        let (reply, refusal) = site.put(&message, Transport::Udp).await;
        // BADVERS has the number of another code.
        let number = u16::from(reply.metadata.response_code);
        assert_eq!((number, refusal), (code.into(), Some(Refusal::Query)));
    }
    assert_eq!(upstream.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn so_many_questions_wait_for_answers_and_no_more() {
    const MOST: usize = 256;
    let upstream = Scripted::start(|_, _| vec![]).await;
    let site = Arc::new(Site::new(&[&upstream], Policy::default()));
    let query = bytes(&question("a.example", RecordType::A));
    let mut asking = JoinSet::new();
    for _ in 0..=MOST {
        let (site, query) = (Arc::clone(&site), query.clone());
        asking.spawn(async move { site.server.answer(&query, Transport::Udp).await });
    }
    let answers = asking.join_all().await;
    let answered = answers.iter().flatten().filter(|Answer { bytes, .. }| bytes[3] & 0x0f == 2).count();
    assert_eq!((answered, answers.len()), (MOST, MOST + 1));
}
