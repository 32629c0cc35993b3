// The job components in the browser. Their attributes are HTMX's, and where the app has HTMX it does the asking; where it has not, this file understands
// those of them that the components use. It also tells screen readers of a change, stops where a job is gone, and shows that the server is away.
const box = el => el.closest?.('.fh-job')

function say(b, text) {
  const p = b?.querySelector('.fh-job-say')
  if (p && text && p.textContent !== text) p.textContent = text
}

function told(el) {
  const b = box(el)
  b?.classList.remove('fh-job-away')
  say(b, b?.querySelector('[data-say]')?.dataset.say)
}

function away(el) {
  const b = box(el)
  b?.classList.add('fh-job-away')
  say(b, b?.dataset.away)
}

function gone(el) {       // or nobody is logged in any more: asking again would not help
  const b = box(el), p = document.createElement('p')
  p.className = 'fh-job-now fh-job-gone'
  p.textContent = b.dataset.gone
  b.classList.remove('fh-job-away')
  b.querySelector('.fh-job-now')?.replaceWith(p)
  say(b, b.dataset.gone)
}

function refused(form, type, text) {
  const p = form.querySelector('.fh-job-alert')
  p.textContent = /^text\/plain/.test(type || '') && text.length < 300 ? text : form.dataset.refused
  p.hidden = false
}

document.addEventListener('htmx:afterSwap', e => told(e.target))
document.addEventListener('htmx:sseMessage', e => told(e.target))
document.addEventListener('htmx:sendError', e => away(e.target))
document.addEventListener('htmx:sseError', e => away(e.target))
document.addEventListener('htmx:responseError', e => {
  const form = e.target.closest?.('.fh-job-button'), x = e.detail.xhr
  if (form) refused(form, x.getResponseHeader('content-type'), x.responseText)
  else if (box(e.target)) x.status === 404 ? gone(e.target) : away(e.target)
})

// From here on: what is done where there is no HTMX, or none of its extension for server-sent events
const MOST = 30000
const rest = ms => new Promise(done => setTimeout(done, ms))
const ask = (url, more) => fetch(url, {cache: 'no-store', ...more, headers: {'HX-Request': 'true', 'HX-Current-URL': location.href}})

async function poll(el) {
  const when = el.getAttribute('hx-trigger'), every = +/every (\d+)ms/.exec(when)[1]
  for (let wait = /\bload\b/.test(when) ? 0 : every; ; wait = Math.min(MOST, Math.max(every, wait * 1.5))) {
    await rest(wait)
    if (!el.isConnected) return
    let answer, html
    try { answer = await ask(el.getAttribute('hx-get')); html = await answer.text() } catch { away(el); continue }
    if (!el.isConnected) return
    if (answer.status === 404 || answer.redirected) return gone(el)       // redirected: to the login, most likely
    if (!answer.ok) { away(el); continue }
    const b = box(el)
    el.outerHTML = html
    return told(b)
  }
}

function listen(el, wait = 2000) {
  const url = el.getAttribute('sse-connect'), s = new EventSource(url)
  const into = el.querySelector('[sse-swap]')
  s.addEventListener(into.getAttribute('sse-swap'), e => {
    if (!el.isConnected) return s.close()
    wait = 2000
    into.innerHTML = e.data
    told(el)
  })
  s.addEventListener(el.getAttribute('sse-close'), () => s.close())
  s.onerror = async () => {       // the browser connects again by itself, unless the answer was no stream
    if (!el.isConnected) return s.close()
    away(el)
    if (s.readyState !== EventSource.CLOSED) return
    try { if ((await ask(url.replace('/events?kind=', '/'))).status === 404) return gone(el) } catch { }
    await rest(wait)
    if (el.isConnected) listen(el, Math.min(MOST, wait * 2))
  }
}

async function send(form, button) {
  const body = new FormData(form, button)
  button && (button.disabled = true)
  try {
    const answer = await ask(form.getAttribute('hx-post'), {method: 'POST', body}), html = await answer.text(), to = answer.headers.get('hx-redirect')
    if (to || answer.redirected) location.assign(to || answer.url)
    else if (answer.ok) form.outerHTML = html
    else refused(form, answer.headers.get('content-type'), html)
  } catch { refused(form, '', '') }
  button && (button.disabled = false)
}

const seen = new WeakSet()
function arm(root) {
  for (const el of root.querySelectorAll('.fh-job[sse-connect], .fh-job [hx-get]')) {
    const live = el.hasAttribute('sse-connect')
    if (seen.has(el) || (live ? window.htmx?.createEventSource : window.htmx)) continue
    seen.add(el)
    live ? listen(el) : poll(el)
  }
}

function start() {
  arm(document)
  new MutationObserver(() => arm(document)).observe(document.body, {childList: true, subtree: true})
  if (!window.htmx) document.addEventListener('submit', e => {
    if (!e.target.matches('.fh-job-button[hx-post]')) return
    e.preventDefault()
    send(e.target, e.submitter)
  })
}
document.readyState === 'loading' || document.readyState === 'interactive' ? document.addEventListener('DOMContentLoaded', start) : start()
